"""Fast versions of the operations in a layer. Each module but the last two is the door to its operations: it chooses
between a kernel, torch's own operation and what torch.compile fuses, by device, type, shape and what is installed.

    activations  swiglu, gelu           attention  causal attention over short samples
    norms        layer_norm, rms_norm   products   x Wᵀ + b
    dropout      drop
    cpu          C++ kernels, csrc/cpu_kernels.h
    gpu          Triton kernels; `layers/loss.py` and `dropout` call them
"""
