"""Flags of a small model, and a program that tells whether torch was imported."""

MODEL = (
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --train-iters 2"
).split()
SHOW_TORCH = """
import sys
from megascratch.commands import main
code = main(sys.argv[1:])
sys.exit(code + 90 * ("torch" in sys.modules))
"""
