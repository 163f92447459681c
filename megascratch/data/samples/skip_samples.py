"""A data set and samples that nobody shall read in, the same data set without them out.

    data set   0 1 2 3 4 5 6 7 8 9      not to be read: [2, 5)
    here       0 1       2 3 4 5 6

Sample i is a function of (files, seed, ranges, i) alone (law 4), so a run that jumped over samples can go on anywhere.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from megascratch.data.samples.dataset import Dataset, TokenSpan

Ranges = list[list[int]]
"""[first, stop) of each run of samples, in rising order, disjoint."""


def merge_ranges(*ranges: Iterable[Sequence[int]]) -> Ranges:
    """All of them in order; those that touch or overlap are one."""
    found: Ranges = []
    for first, stop in sorted(tuple(pair) for some in ranges for pair in some):
        if found and first <= found[-1][1]:
            found[-1][1] = max(found[-1][1], stop)
        elif first < stop:
            found.append([first, stop])
    return found


def original_index(number: int, ranges: Ranges) -> int:
    """Which sample of the whole data set is number `number` of those that are read."""
    for first, stop in ranges:
        if number < first:
            break
        number += stop - first
    return number


class SkipSamples:
    """`dataset` without the samples in `ranges`."""

    def __init__(self, dataset: Dataset, ranges: Ranges):
        self.dataset, self.ranges = dataset, ranges

    def __len__(self) -> int:
        return max(len(self.dataset) - sum(stop - first for first, stop in self.ranges), 0)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.dataset[original_index(number, self.ranges)]

    def spans(self, number: int) -> list[TokenSpan]:
        """Where the tokens of sample `number` come from, in order."""
        return self.dataset.spans(original_index(number, self.ranges))
