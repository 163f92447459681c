"""SplitMix64 (Steele, Lea, Flood 2014) on Python integers: the hash behind the order of samples, random choices in the
data and the keys of dropout. The same on every machine, and without torch.

`parallel/random.py` has it for tensors, `csrc/` for the shuffles of large corpora, `layers/kernels/gpu.py` in Triton.
"""

GAMMA = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: counter i becomes GAMMA * i
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK = (1 << 64) - 1


def mix64(value: int) -> int:
    """The output function: mixes the lowest 64 bits of `value`. Every output bit depends on every input bit."""
    value &= MASK
    value = (value ^ (value >> 30)) * MIX_1 & MASK
    value = (value ^ (value >> 27)) * MIX_2 & MASK
    return value ^ (value >> 31)
