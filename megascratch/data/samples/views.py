"""Datasets made of other datasets: blends by weight, a curriculum of blends, and a dataset without skipped samples.

Sample i of each is still a function of (files, seed, weights or ranges, i) alone (law 4), so a run can resume anywhere.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from megascratch.data.samples.dataset import Dataset, TokenSpan
from megascratch.data.tokens.indices import blend

BLEND_BLOCK = 1 << 16
UNLIMITED = np.iinfo(np.int64).max

Ranges = list[list[int]]
"""[first, stop) of each run of samples, in rising order, disjoint."""


class DatasetView(ABC):
    """A dataset whose samples are samples of other datasets, its `parts`; `origin` says which one.

    Past the end of a finite view every sample is empty.
    """

    parts: Sequence[Dataset]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def origin(self, number: int) -> tuple[int, int]:
        """(index of the part, its sample) of sample `number`."""

    def is_past_the_end(self, number: int) -> bool:
        """Whether a finite view has no sample `number`."""
        return False

    def __getitem__(self, number: int) -> np.ndarray:
        if self.is_past_the_end(number):
            return np.empty(0, dtype=np.int64)
        part, sample = self.origin(number)
        return self.parts[part][sample]

    def spans(self, number: int) -> list[TokenSpan]:
        """Where the tokens of sample `number` come from, in order."""
        if self.is_past_the_end(number):
            return []
        part, sample = self.origin(number)
        return self.parts[part].spans(sample)


class Blend(DatasetView):
    """Several datasets blended by weight: sample i comes from the dataset that is furthest below its share so far.

    `finite`: every sample of each dataset once; a dataset that is used up drops out. Which dataset gives sample i does
    not depend on later samples. Indices are made in blocks, so that a blend has no end and needs little memory.
    `starts` [datasets]: the first sample that each dataset gives (default: 0). A dataset of weight 0 gives none.
    """

    def __init__(
        self,
        parts: Sequence[Dataset],
        weights: Sequence[float],
        *,
        finite: bool,
        starts: np.ndarray | None = None,
    ):
        if len(parts) != len(weights) or not parts:
            raise ValueError(f"{len(parts)} datasets, {len(weights)} weights")
        self.parts = list(parts)
        self.finite = finite
        self.weights = np.asarray(weights, dtype=np.float64)
        self.weights = self.weights / self.weights.sum()
        gives_samples = self.weights > 0
        sizes = np.array([len(part) for part in parts], dtype=np.int64) * gives_samples
        self._count = int(sizes.sum())
        self._limits = sizes if finite else np.where(gives_samples, UNLIMITED, 0)
        self.starts = np.zeros(len(parts), dtype=np.int64) if starts is None else starts
        # from each dataset before each block, as far as known
        self._taken = [np.zeros(len(parts), dtype=np.int64)]
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._count

    def is_past_the_end(self, number: int) -> bool:
        if number < 0:
            raise IndexError(f"sample {number} is negative")
        return self.finite and number >= self._count

    def origin(self, number: int) -> tuple[int, int]:
        wanted, at = divmod(number, BLEND_BLOCK)
        while len(self._taken) <= wanted:
            self._choose(len(self._taken) - 1)
        if self._block is None or self._block[0] != wanted:
            self._choose(wanted)
        assert self._block is not None
        _, parts, samples = self._block
        part = int(parts[at])
        return part, int(self.starts[part] + samples[at])

    def choices(self, count: int) -> Iterator[np.ndarray]:
        """Which dataset gives each of the first `count` samples, int32, in blocks."""
        for start in range(0, count, BLEND_BLOCK):
            self.origin(start)
            assert self._block is not None
            _, parts, _ = self._block
            yield parts[: count - start]

    def taken(self, count: int) -> np.ndarray:
        """int64 [datasets]: how many of the first `count` samples each dataset gives."""
        if count == 0:
            return np.zeros(len(self.parts), dtype=np.int64)
        block, at = divmod(count - 1, BLEND_BLOCK)
        self.origin(count - 1)
        assert self._block is not None
        _, parts, _ = self._block
        return self._taken[block] + np.bincount(parts[: at + 1], minlength=len(self.parts))

    def _choose(self, block: int) -> None:
        """Chooses the samples of one block, given the samples taken before it."""
        taken = self._taken[block]
        count = BLEND_BLOCK
        if self.finite:
            count = min(BLEND_BLOCK, self._count - block * BLEND_BLOCK)
        parts, samples = blend(self.weights, taken, self._limits, count)
        self._block = (block, parts, samples)
        if len(self._taken) == block + 1:
            self._taken.append(taken + np.bincount(parts, minlength=len(self.parts)))


class Curriculum(DatasetView):
    """Blends that follow one another (`--data-stages`), as one endless dataset.

        sample    0 ............ a ............ b ......
        blend     the first one  the second     the third

    The datasets `parts` are blended by `weights[k]` (one per part, 0: not in this stage) from sample `firsts[k]`;
    `firsts` begins with 0 and increases. A part that two stages share continues in the second stage where the first
    stopped: no sample is read twice before all are read once, whatever the stages.
    """

    def __init__(
        self, parts: Sequence[Dataset], firsts: Sequence[int], weights: Sequence[Sequence[float]]
    ):
        is_rising = list(firsts) == sorted(set(firsts))
        if len(firsts) != len(weights) or not is_rising or firsts[0] != 0:
            raise ValueError(f"stages that begin at {list(firsts)} with {len(weights)} blends")
        self.parts = list(parts)
        self.firsts = list(firsts)
        self.weights = list(weights)
        self._blends: list[
            Blend
        ] = []  # of the first stages; a stage depends on what the previous ones have read

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def origin(self, number: int) -> tuple[int, int]:
        if number < 0:
            raise IndexError(f"sample {number} is negative")
        stage = bisect_right(self.firsts, number) - 1
        return self.blend(stage).origin(number - self.firsts[stage])

    def blend(self, stage: int) -> Blend:
        """The blend of one stage; its sample 0 is the stage's first."""
        while len(self._blends) <= stage:
            self._blends.append(self._next_blend())
        return self._blends[stage]

    def _next_blend(self) -> Blend:
        stage = len(self._blends)
        starts = np.zeros(len(self.parts), dtype=np.int64)
        for previous, earlier in enumerate(self._blends):
            samples = self.firsts[previous + 1] - self.firsts[previous]
            starts += earlier.taken(samples)
        return Blend(self.parts, self.weights[stage], finite=False, starts=starts)


class SkipSamples(DatasetView):
    """The samples of `dataset` without those in `ranges`.

    dataset    0 1 2 3 4 5 6 7 8 9      skipped: [2, 5)
    view       0 1       2 3 4 5 6
    """

    def __init__(self, dataset: Dataset, ranges: Ranges):
        self.parts = [dataset]
        self.ranges = ranges

    def __len__(self) -> int:
        skipped = sum(stop - first for first, stop in self.ranges)
        return max(len(self.parts[0]) - skipped, 0)

    def origin(self, number: int) -> tuple[int, int]:
        return 0, original_index(number, self.ranges)


def merge_ranges(*ranges: Iterable[Sequence[int]]) -> Ranges:
    """All ranges in order; those that touch or overlap are merged."""
    pairs: list[tuple[int, int]] = []
    for some in ranges:
        pairs.extend((first, stop) for first, stop in some)
    merged: Ranges = []
    for first, stop in sorted(pairs):
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        elif first < stop:
            merged.append([first, stop])
    return merged


def original_index(number: int, ranges: Ranges) -> int:
    """The number in the full dataset of sample `number` of the view."""
    for first, stop in ranges:
        if number < first:
            break
        number += stop - first
    return number
