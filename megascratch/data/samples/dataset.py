"""Training datasets: what a dataset is, and `Corpus`, which cuts one corpus into shuffled samples.

Sample i is a pure function of (files, seed, i), whatever the number of samples a run asks for (law 4):

    epoch e = i // n, place i % n           n samples per epoch
    sequences shuffled by (seed, e)  ->  joined in a ring, cut every L tokens  ->  samples shuffled by (seed, e)

The first cut of an epoch is at a random one of the first L tokens, so that a long document is not cut at the same
places each time.
A sample has L + 1 tokens; its last token is the first one of the next sample. A finite dataset (validation, test)
keeps the order of the text, has one epoch, and ends with a shorter sample; past its end every sample is empty.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.index_cache import Arrays, digest_of, load_or_build
from megascratch.data.tokens.indices import permutation, pieces_between, sample_index, stream_key

FORMAT = 2  # version of the cached indices; part of their key
# purpose of a random key
SEQUENCES = 1
SAMPLES = 2
FIRST_CUT = 3
EPOCHS_KEPT = 2
NO_PIECES = np.empty((0, 3), dtype=np.int64)


class Dataset(Protocol):
    """Anything that returns sample i as int64 [<= L + 1]; `len` is the size of a finite dataset, or of one epoch."""

    def __getitem__(self, number: int) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def spans(self, number: int) -> "list[TokenSpan]":
        """Where the tokens of sample `number` come from, in order."""


class WeightedSource(Protocol):
    """Sequences of token ids: `TokenReader`, `Masked` or `MockReader`."""

    prefix: str
    lengths: np.ndarray

    @property
    def identity(self) -> dict[str, Any]: ...

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray: ...

    def read(self, pieces: np.ndarray) -> np.ndarray:
        """int64: the tokens of `pieces` [n, 3] (sequence, offset, count), concatenated."""


class TokenSpan(NamedTuple):
    """Tokens [start, stop) of a sequence."""

    source: WeightedSource
    sequence: int
    start: int
    stop: int


class SingleSourceDataset(ABC):
    """A dataset whose samples are all made of pieces of the sequences [first, stop) of one source.

    `cache` is the folder of the index cache; None: the indices are built in memory.
    """

    def __init__(
        self,
        source: WeightedSource,
        first: int,
        stop: int,
        seq_length: int,
        seed: int,
        cache: Path | None,
    ):
        self.source = source
        self.first = first
        self.stop = stop
        self.seq_length = seq_length
        self.seed = seed
        self.cache = cache
        self.tokens = int(source.lengths[first:stop].sum(dtype=np.int64))

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def index_keys(self) -> list[dict[str, Any]]:
        """Index cache keys of the indices that were opened so far."""

    def index_digests(self) -> list[str]:
        """Digests of the cached indices that were opened so far: equal on machines that read in the same order."""
        if self.cache is None:
            return []
        return [digest_of(self.cache, key) for key in self.index_keys()]

    @abstractmethod
    def pieces(self, number: int) -> np.ndarray:
        """int64 [n, 3]: (sequence, offset, count) of the pieces of sample `number`."""

    def __getitem__(self, number: int) -> np.ndarray:
        return self.source.read(self.pieces(number))

    def spans(self, number: int) -> list[TokenSpan]:
        """Where the tokens of sample `number` come from, in order."""
        spans = []
        for sequence, start, count in self.pieces(number).tolist():
            spans.append(TokenSpan(self.source, sequence, start, start + count))
        return spans


class EpochIndex(NamedTuple):
    """How one epoch is read."""

    sequences: np.ndarray
    """int64 [sequences, plus the first ones again]: the order in which they are concatenated."""
    cuts: np.ndarray
    """int64 [samples + 1, 2]: place in `sequences` and offset of each sample's first token."""
    samples: np.ndarray
    """int64 [samples]: the order in which the cuts are read."""


class Corpus(SingleSourceDataset):
    """Sequences [first, stop) of one source, cut into samples of `seq_length` + 1 tokens.

    `finite`: in order and once (validation); else endless, with a new shuffle in each epoch. `cache` is the folder of
    the index cache; None: build in memory.

    Raises: UserError where the range has too few tokens for one sample.
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
        steps = max(self.tokens - 1, 0)  # tokens with a next one
        self._count = -(-steps // seq_length) if finite else steps // seq_length
        self._epochs: OrderedDict[int, EpochIndex] = OrderedDict()
        if self._count == 0:
            needed = 2 if finite else seq_length + 1
            shorter = f" or --seq-length {steps}" if steps and not finite else ""
            raise UserError(
                f"{source.prefix}: sequences {first} to {stop} hold {self.tokens} tokens, one sample of --seq-length "
                f"{seq_length} needs {needed}; use more text{shorter}"
            )

    def __len__(self) -> int:
        return self._count

    def pieces(self, number: int) -> np.ndarray:
        if number < 0:
            raise IndexError(f"sample {number} is negative")
        epoch, place = divmod(number, self._count)
        if self.finite and epoch:
            return NO_PIECES
        index = self._epoch(epoch)
        cut = int(index.samples[place])
        (place, offset), (last_place, last_offset) = index.cuts[cut : cut + 2].tolist()
        return pieces_between(
            self.source.lengths, index.sequences, place, offset, last_place, last_offset
        )

    def _epoch(self, epoch: int) -> EpochIndex:
        if epoch not in self._epochs:
            if self.cache:
                arrays = load_or_build(self.cache, self._key(epoch), lambda: self._build(epoch))
            else:
                arrays = self._build(epoch)
            self._epochs[epoch] = EpochIndex(**arrays)
            if len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def index_keys(self) -> list[dict[str, Any]]:
        return [self._key(epoch) for epoch in self._epochs]

    def _key(self, epoch: int) -> dict[str, Any]:
        """Everything that determines the index of an epoch."""
        return {
            "format": FORMAT,
            **self.source.identity,
            "split": [self.first, self.stop],
            "seq_length": self.seq_length,
            "order": "in order" if self.finite else {"seed": self.seed, "epoch": epoch},
        }

    def _build(self, epoch: int) -> Arrays:
        if self.finite:
            sequences = np.arange(self.first, self.stop, dtype=np.int64)
            samples = np.arange(self._count, dtype=np.int64)
            start = 0
        else:
            sequences = permutation(self.stop - self.first, stream_key(self.seed, epoch, SEQUENCES))
            sequences += self.first
            samples = permutation(self._count, stream_key(self.seed, epoch, SAMPLES))
            start = stream_key(self.seed, epoch, FIRST_CUT) % self.seq_length
            sequences = self._closed(sequences, start)
        cuts = sample_index(self.source.lengths, sequences, self.seq_length, self.finite, start)
        return {"sequences": sequences, "cuts": cuts[: self._count + 1], "samples": samples}

    def _closed(self, sequences: np.ndarray, start: int) -> np.ndarray:
        """Closes the ring: appends the first sequences again, up to the `start` tokens before the first cut."""
        head = tokens = 0
        while tokens < start:
            tokens += int(self.source.lengths[sequences[head]])
            head += 1
        return np.concatenate([sequences, sequences[:head]])
