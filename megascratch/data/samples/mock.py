"""Synthetic data (`--mock-data`, as in Megatron): sequences without files, the same on every machine."""

from typing import Any

import numpy as np

SEQUENCES, LONGEST = 100_000, 4096


class MockReader:
    """100,000 sequences of 1 to 4,095 tokens: 1, 2, 3 ... modulo the vocabulary, then `eod` (if there is one)."""

    prefix = "mock data"

    def __init__(self, vocab_size: int, eod: int | None):
        self.vocab_size, self.eod = vocab_size, eod
        self.lengths = np.random.default_rng(0).integers(1, LONGEST, size=SEQUENCES, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the sequences."""
        return {"mock": SEQUENCES, "vocab_size": self.vocab_size, "eod": self.eod}

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Ids [length] of a sequence from token `offset` (default: to its end)."""
        end = int(self.lengths[sequence])
        stop = end if length is None else offset + length
        ids = np.arange(offset + 1, stop + 1, dtype=np.int64) % self.vocab_size
        if self.eod is not None and stop == end and len(ids):
            ids[-1] = self.eod
        return ids

    def read(self, pieces: np.ndarray) -> np.ndarray:
        """int64: the tokens of `pieces` [n, 3] (sequence, offset, count), concatenated."""
        return np.concatenate([np.empty(0, np.int64), *(self.get(*piece) for piece in pieces.tolist())])
