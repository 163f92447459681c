"""Counter-based random numbers for dropout and initial weights: the same key and index give the same number on every
layout, device and run (law 3).

Dropout bits come from SplitMix64's finaliser (Steele, Lea, Flood 2014) over a counter. Initial weights come from Philox
(Salmon et al. 2011), keyed by the weight's name and drawn in blocks of entire rows.
"""

import hashlib
import math

import numpy as np
from torch import Tensor

from megascratch.parallel import splitmix
from megascratch.parallel.shard import Box

GOLDEN = splitmix.GAMMA - (1 << 64)  # as a signed 64-bit integer
MIX_1 = splitmix.MIX_1 - (1 << 64)
MIX_2 = splitmix.MIX_2 - (1 << 64)
_BLOCK = 1 << 16  # elements drawn at once; part of the definition of every initial weight


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


def normal_rows(seed: int, name: str, shape: tuple[int, ...], box: Box) -> np.ndarray:
    """The block `box` of the float32 N(0, 1) tensor that is defined by (seed, name, shape).

    Only blocks of rows that overlap the box are drawn, so a rank draws about as much as it holds.
    """
    *outer, width = shape
    *outer_slices, columns = box.slices
    rows_per_block = max(1, _BLOCK // width)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    all_rows = np.arange(math.prod(outer)).reshape(outer)
    row_numbers = all_rows[tuple(outer_slices)].ravel()  # of the box
    block_numbers = row_numbers // rows_per_block
    out = np.empty((row_numbers.size, box.shape[-1]), np.float32)
    for block in np.unique(block_numbers):
        stream = np.random.Generator(np.random.Philox(key=key, counter=int(block) << 64))
        rows = stream.standard_normal((rows_per_block, width), np.float32)[:, columns]
        mine = block_numbers == block
        out[mine] = rows[row_numbers[mine] % rows_per_block]
    return out.reshape(box.shape)
