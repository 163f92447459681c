"""Counter-based random numbers for dropout and initial weights: the same key and index give the same number on every
layout, device and run (law 3).

Dropout bits come from SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter. Initial weights come from Philox
(Salmon et al. 2011), keyed by the weight's name and drawn in blocks of entire rows.
"""

import hashlib

import numpy as np
from torch import Tensor

from megascratch.parallel.shard import Box

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed 64-bit integer
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
_BLOCK = 1 << 16  # elements drawn at once; part of the definition of every initial weight


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch has no unsigned 64-bit arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's hash of int64 values: every output bit depends on every input bit."""
    x = x * GOLDEN
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def mixed(number: int) -> int:
    """`mix64` of one Python integer, without a tensor."""
    x = number * GOLDEN % (1 << 64)
    x = (x ^ x >> 30) * MIX_1 % (1 << 64)
    x = (x ^ x >> 27) * MIX_2 % (1 << 64)
    x ^= x >> 31
    return x - (x >> 63 << 64)


def sample_keys(seed: int, site: int, samples: Tensor) -> Tensor:
    """A 64-bit key per sample for one dropout site. The step is not needed: a sample's number is unique in a run."""
    return mix64(mix64(samples + mixed(seed)) + site)


def keep_mask(keys: Tensor, index: Tensor, p: float) -> Tensor:
    """True with probability 1 - p at each of the global element numbers `index`; shapes broadcast."""
    bits = _shift_right(mix64(index ^ keys), 11)  # 53 uniform bits
    return bits >= int(p * (1 << 53))


def normal_rows(seed: int, name: str, shape: tuple[int, ...], box: Box) -> np.ndarray:
    """The block `box` of the float32 N(0, 1) tensor that is defined by (seed, name, shape).

    Only blocks of rows that overlap the box are drawn, so a rank draws about as much as it holds.
    """
    width = shape[-1]
    rows_per_block = max(1, _BLOCK // width)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    lead = np.arange(int(np.prod(shape[:-1]))).reshape(shape[:-1])[box.slices[:-1]].ravel()
    out = np.empty((lead.size, box.shape[-1]), np.float32)
    for block in np.unique(lead // rows_per_block):
        stream = np.random.Generator(np.random.Philox(key=key, counter=int(block) << 64))
        rows = stream.standard_normal((rows_per_block, width), np.float32)[:, box.slices[-1]]
        mine = lead // rows_per_block == block
        out[mine] = rows[lead[mine] % rows_per_block]
    return out.reshape(box.shape)
