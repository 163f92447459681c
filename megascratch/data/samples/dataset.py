"""Training datasets: `Corpus` cuts one corpus into shuffled samples, `Blend` mixes several datasets by weight.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.index_cache import Arrays, digest_of, load_or_build
from megascratch.data.tokens.indices import blend, permutation, pieces_between, sample_index, stream_key

FORMAT = 2  # version of the cached indices; part of their key
SEQUENCES, SAMPLES, FIRST_CUT = 1, 2, 3  # purpose of a random key
EPOCHS_KEPT = 2
BLEND_BLOCK = 1 << 16
NO_PIECES = np.empty((0, 3), dtype=np.int64)
UNLIMITED = np.iinfo(np.int64).max


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
    """A dataset whose samples are all made of pieces of one source."""

    source: WeightedSource
    cache: Path | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def index_keys(self) -> list[dict[str, Any]]:
        """Index cache keys of the indices that were opened so far."""

    def index_digests(self) -> list[str]:
        """Digests of the cached indices that were opened so far: equal on machines that read in the same order."""
        return [] if self.cache is None else [digest_of(self.cache, key) for key in self.index_keys()]

    @abstractmethod
    def pieces(self, number: int) -> np.ndarray:
        """int64 [n, 3]: (sequence, offset, count) of the pieces of sample `number`."""

    def __getitem__(self, number: int) -> np.ndarray:
        return self.source.read(self.pieces(number))

    def spans(self, number: int) -> list[TokenSpan]:
        """Where the tokens of sample `number` come from, in order."""
        return [
            TokenSpan(self.source, sequence, start, start + count)
            for sequence, start, count in self.pieces(number).tolist()
        ]


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
        self.source, self.first, self.stop = source, first, stop
        self.seq_length, self.seed, self.finite, self.cache = seq_length, seed, finite, cache
        tokens = int(source.lengths[first:stop].sum(dtype=np.int64))
        steps = max(tokens - 1, 0)
        self._count = -(-steps // seq_length) if finite else steps // seq_length
        self._epochs: OrderedDict[int, EpochIndex] = OrderedDict()
        if self._count == 0:
            needed = 2 if finite else seq_length + 1
            raise UserError(
                f"{source.prefix}: sequences {first} to {stop} hold {tokens} tokens, one sample of --seq-length "
                f"{seq_length} needs {needed}; use more text"
                + (f" or --seq-length {steps}" if steps and not finite else "")
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
        rows = index.cuts[cut : cut + 2].ravel().tolist()
        return pieces_between(self.source.lengths, index.sequences, *rows)

    def _epoch(self, epoch: int) -> EpochIndex:
        if epoch not in self._epochs:
            arrays = load_or_build(self.cache, self._key(epoch), lambda: self._build(epoch)) if self.cache else None
            self._epochs[epoch] = EpochIndex(**(arrays or self._build(epoch)))
            if len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def index_keys(self) -> list[dict[str, Any]]:
        return [self._key(epoch) for epoch in self._epochs]

    def _key(self, epoch: int) -> dict[str, Any]:
        """Everything that determines the index of an epoch."""
        order = "in order" if self.finite else {"seed": self.seed, "epoch": epoch}
        split = [self.first, self.stop]
        return {"format": FORMAT, **self.source.identity, "split": split, "seq_length": self.seq_length, "order": order}

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


class Blend:
    """Several datasets blended by weight: sample i comes from the dataset that is furthest below its share so far.

    `finite`: every sample of each dataset once; a dataset that is used up drops out. Which dataset gives sample i does
    not depend on later samples. Indices are made in blocks, so that a blend has no end and needs little memory.
    `starts` [datasets]: the first sample that each dataset gives (default: 0). A dataset of weight 0 gives none.
    """

    def __init__(
        self, parts: Sequence[Dataset], weights: Sequence[float], *, finite: bool, starts: np.ndarray | None = None
    ):
        if len(parts) != len(weights) or not parts:
            raise ValueError(f"{len(parts)} datasets, {len(weights)} weights")
        self.parts, self.finite = list(parts), finite
        self.weights = np.asarray(weights, dtype=np.float64)
        self.weights = self.weights / self.weights.sum()
        sizes = np.array([len(part) for part in parts], dtype=np.int64) * (self.weights > 0)
        self._count = int(sizes.sum())
        self._limits = sizes if finite else np.where(self.weights > 0, UNLIMITED, 0)
        self.starts = np.zeros(len(parts), dtype=np.int64) if starts is None else starts
        self._taken = [np.zeros(len(parts), dtype=np.int64)]  # from each dataset before each block, as far as known
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> np.ndarray:
        if self._is_past_the_end(number):
            return np.empty(0, dtype=np.int64)
        part, sample = self.origin(number)
        return self.parts[part][sample]

    def spans(self, number: int) -> list[TokenSpan]:
        if self._is_past_the_end(number):
            return []
        part, sample = self.origin(number)
        return self.parts[part].spans(sample)

    def _is_past_the_end(self, number: int) -> bool:
        if number < 0:
            raise IndexError(f"sample {number} is negative")
        return self.finite and number >= self._count

    def origin(self, number: int) -> tuple[int, int]:
        """(dataset, its sample) of sample `number`."""
        wanted, at = divmod(number, BLEND_BLOCK)
        while len(self._taken) <= wanted:
            self._choose(len(self._taken) - 1)
        if self._block is None or self._block[0] != wanted:
            self._choose(wanted)
        assert self._block is not None
        part = int(self._block[1][at])
        return part, int(self.starts[part] + self._block[2][at])

    def choices(self, count: int) -> Iterator[np.ndarray]:
        """Which dataset gives each of the first `count` samples, int32, in blocks."""
        for start in range(0, count, BLEND_BLOCK):
            self.origin(start)
            assert self._block is not None
            yield self._block[1][: count - start]

    def taken(self, count: int) -> np.ndarray:
        """int64 [datasets]: how many of the first `count` samples each dataset gives."""
        if count == 0:
            return np.zeros(len(self.parts), dtype=np.int64)
        block, at = divmod(count - 1, BLEND_BLOCK)
        self.origin(count - 1)
        assert self._block is not None
        return self._taken[block] + np.bincount(self._block[1][: at + 1], minlength=len(self.parts))

    def _choose(self, block: int) -> None:
        """Chooses the samples of one block, given the samples taken before it."""
        taken = self._taken[block]
        count = min(BLEND_BLOCK, self._count - block * BLEND_BLOCK) if self.finite else BLEND_BLOCK
        parts, samples = blend(self.weights, taken, self._limits, count)
        self._block = (block, parts, samples)
        if len(self._taken) == block + 1:
            self._taken.append(taken + np.bincount(parts, minlength=len(self.parts)))
