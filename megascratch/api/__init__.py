"""What `import megascratch` offers: configs, training, loaded models, verification, tokenizers and token files.

Each function does what the command of the same name does, in the process that calls it, and raises what the command
would print. Other rooms do not import this one.
"""
