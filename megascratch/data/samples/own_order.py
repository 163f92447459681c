"""The order of samples by a function of the user's own, registered as a `data_order`.

    order(lengths, samples, seed, epoch) -> (sequences, places)

    lengths    int array: the tokens of each sequence of one corpus
    samples    how many samples an epoch of it has
    sequences  a permutation of range(len(lengths)): the order in which the sequences are joined and cut every L tokens
    places     a permutation of range(samples): the order in which these samples are read

It is called once for each corpus and epoch, in every process, and must return the same for the same arguments. What it
returns is checked: training reads each sample of an epoch once.
"""

from typing import Any

import numpy as np
import xxhash

from megascratch.config.errors import UserError
from megascratch.config.registry import look_up
from megascratch.data.samples.dataset import Corpus, WeightedSource
from megascratch.data.tokens.index_cache import Arrays
from megascratch.data.tokens.indices import sample_index

NAMED = 3  # numbers that a message names


class OwnOrder(Corpus):
    """Sequences [first, stop) of one source in a registered order, endless. The order is computed in memory: a cache
    would not know of changes to the function.

    Raises: UserError where the range has too few tokens for one sample.
    """

    def __init__(
        self,
        source: WeightedSource,
        first: int,
        stop: int,
        *,
        name: str,
        seq_length: int,
        seed: int,
    ):
        super().__init__(
            source, first, stop, seq_length=seq_length, seed=seed, finite=False, cache=None
        )
        self.name = name
        self.order: Any = look_up("data_order", name, {})

    def index_digests(self) -> list[str]:
        """Digests of the orders that were computed so far."""
        digests = []
        for index in self._epochs.values():
            digest = xxhash.xxh3_128(index.sequences.tobytes())
            digest.update(index.samples.tobytes())
            digests.append(digest.hexdigest())
        return digests

    def _build(self, epoch: int) -> Arrays:
        """Raises: UserError, naming the order, if it fails, or repeats or leaves out sequences or samples."""
        lengths = np.array(self.source.lengths[self.first : self.stop], dtype=np.int64)
        try:
            sequences, places = self.order(lengths.copy(), self._count, self.seed, epoch)
        except Exception as error:
            raise UserError(
                f"the data order {self.name} fails for {self.source.prefix}, epoch {epoch}: "
                f"{type(error).__name__}: {error}"
            ) from error
        sequences = self._permutation(sequences, len(lengths), "sequences") + self.first
        samples = self._permutation(places, self._count, "samples")
        cuts = sample_index(self.source.lengths, sequences, self.seq_length, False, 0)
        return {"sequences": sequences, "cuts": cuts[: self._count + 1], "samples": samples}

    def _permutation(self, found: Any, count: int, what: str) -> np.ndarray:
        head = f"the data order {self.name} of {self.source.prefix} must read each of {count:,} {what} once"
        numbers = np.asarray(found)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise UserError(
                f"{head}: give a list of whole numbers, not {numbers.dtype} {numbers.shape}"
            )
        outside = numbers[(numbers < 0) | (numbers >= count)]
        if len(outside):
            raise UserError(f"{head}: {_few(outside)} is outside of 0 to {count - 1}")
        times = np.bincount(numbers, minlength=count)
        repeated = np.flatnonzero(times > 1)
        missing = np.flatnonzero(times == 0)
        if len(repeated):
            raise UserError(
                f"{head}: it repeats {len(repeated):,} (first {_few(repeated)}) and leaves out {len(missing):,}"
            )
        if len(missing):
            raise UserError(f"{head}: it leaves out {len(missing):,} (first {_few(missing)})")
        return numbers.astype(np.int64)


def _few(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:NAMED].tolist()))
