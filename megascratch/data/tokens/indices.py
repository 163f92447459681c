"""The hot loops over documents and samples: the C++ extension, or the slower Python version with a warning."""

from typing import Any

from megascratch.data.tokens import indices_python
from megascratch.parallel.splitmix import GAMMA, mix64
from megascratch.runtime.extensions import warn_once_that_they_are_missing

try:
    from megascratch.data.tokens import _indices as engine
except ImportError:
    warn_once_that_they_are_missing()
    engine: Any = indices_python  # type: ignore[no-redef]

TokenFile = engine.TokenFile
sound_index = engine.sound_index
permutation = engine.permutation
legacy_shuffle = engine.legacy_shuffle
sample_index = engine.sample_index
sample_rows = engine.sample_rows
pieces_between = engine.pieces_between
read_pieces = engine.read_pieces
best_fit = engine.best_fit
blend = engine.blend


def stream_key(*numbers: int) -> int:
    """A 64-bit key from numbers such as (seed, epoch, purpose); it depends on each of them and on their order."""
    key = 0
    for number in numbers:
        key ^= mix64(number + GAMMA)
        key = mix64(key + GAMMA)
    return key
