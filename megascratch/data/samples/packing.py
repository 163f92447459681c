"""Best-fit packing (`--packing best-fit`, arXiv 2404.10830): samples of whole documents, without needless cuts.

A sequence that fits into a sample of L + 1 tokens is never cut. A longer one gives full samples (adjacent ones share a
token, as always), and its remainder is packed with the others: longest first, each into the fullest sample that has
room. The rest of a sample is padding, which does not count in the loss.

Which sequences are packed together depends only on the files, so every epoch has the same number of samples; each epoch
shuffles their order again. Packing works on 2^20 sequences at a time, so that its memory is bounded.
"""

from pathlib import Path
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.samples.dataset import NO_PIECES, SAMPLES, SingleSourceDataset, WeightedSource
from megascratch.data.tokens.index_cache import Arrays, load_or_build
from megascratch.data.tokens.indices import best_fit, permutation, stream_key

FORMAT = 1  # version of the cached index; part of its key
WINDOW = 1 << 20  # sequences packed together


class Packed(SingleSourceDataset):
    """Sequences [first, stop) of one source, packed into samples of at most `seq_length` + 1 tokens.

    `finite`: in the order of packing and once (validation); else endless, with a new shuffle in each epoch. `cache` is
    the folder of the index cache; None: build in memory.

    Raises: UserError where the range has no token to predict.
    """

    def __init__(
        self,
        source: WeightedSource,
        first: int,
        stop: int,
        *,
        seq_length: int,
        seed: int,
        finite: bool,
        cache: Path | None,
    ):
        super().__init__(source, first, stop, seq_length, seed, cache)
        self.finite = finite
        arrays = load_or_build(cache, self._key(), self._build) if cache else self._build()
        self.rows = arrays["pieces"]  # [pieces, 2]: (sequence, offset of its first token)
        self.ends = arrays["ends"]  # [samples]: pieces up to the end of each
        self._shuffled: tuple[int, np.ndarray] | None = None
        if self.tokens < 2:
            raise UserError(
                f"{source.prefix}: sequences {first} to {stop} hold {self.tokens} tokens, 2 are needed; use more text"
            )

    def __len__(self) -> int:
        return len(self.ends)

    def pieces(self, number: int) -> np.ndarray:
        if number < 0:
            raise IndexError(f"sample {number} is negative")
        epoch, sample = divmod(number, len(self))
        if self.finite and epoch:
            return NO_PIECES
        if not self.finite:
            sample = int(self._order(epoch)[sample])
        first = int(self.ends[sample - 1]) if sample else 0
        rows = self.rows[first : int(self.ends[sample])]
        # tokens from each offset to the end of the sequence
        rests = self.source.lengths[rows[:, 0]] - rows[:, 1]
        counts = np.minimum(rests, self.seq_length + 1)
        return np.column_stack([rows, counts])

    def _order(self, epoch: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = epoch, permutation(len(self), stream_key(self.seed, epoch, SAMPLES))
        return self._shuffled[1]

    def index_keys(self) -> list[dict[str, Any]]:
        return [self._key()]

    def _key(self) -> dict[str, Any]:
        """Everything that determines the index."""
        return {
            **self.source.identity,
            "best fit": FORMAT,
            "split": [self.first, self.stop],
            "seq_length": self.seq_length,
        }

    def _build(self) -> Arrays:
        pieces = [NO_PIECES[:, :2]]  # each [pieces, 2]
        ends = [np.empty(0, np.int64)]  # each [samples]
        before = 0
        for start in range(self.first, self.stop, WINDOW):
            stop = min(start + WINDOW, self.stop)
            rows, stops = best_fit(self.source.lengths, start, stop, self.seq_length)
            pieces.append(rows)
            ends.append(stops + before)
            before += len(rows)
        return {"pieces": np.concatenate(pieces), "ends": np.concatenate(ends)}
