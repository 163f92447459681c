"""Counter-based random numbers for dropout: the same key and index give the same number on every layout, device and run
(law 3).

The bits come from SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter.
"""

from torch import Tensor

from megascratch.parallel import splitmix

GOLDEN = splitmix.GAMMA - (1 << 64)  # as a signed 64-bit integer
MIX_1 = splitmix.MIX_1 - (1 << 64)
MIX_2 = splitmix.MIX_2 - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch has no unsigned 64-bit arithmetic."""
    kept = (1 << (64 - bits)) - 1
    return (x >> bits) & kept


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's hash of int64 values: every output bit depends on every input bit."""
    x = x * GOLDEN
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def mixed(number: int) -> int:
    """`mix64` of one Python integer, without a tensor."""
    unsigned = splitmix.mix64(number * splitmix.GAMMA)
    return unsigned - (unsigned >> 63 << 64)


def sample_keys(seed: int, site: int, samples: Tensor) -> Tensor:
    """A 64-bit key per sample for one dropout site. The step is not needed: a sample's number is unique in a run."""
    return mix64(mix64(samples + mixed(seed)) + site)


def keep_mask(keys: Tensor, index: Tensor, p: float) -> Tensor:
    """True with probability 1 - p at each of the global element numbers `index`; shapes broadcast."""
    bits = _shift_right(mix64(index ^ keys), 11)  # 53 uniform bits
    return bits >= int(p * (1 << 53))
