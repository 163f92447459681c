"""A view of a dataset that skips given ranges of samples.

    dataset    0 1 2 3 4 5 6 7 8 9      skipped: [2, 5)
    view       0 1       2 3 4 5 6

Sample i is a function of (files, seed, ranges, i) alone (law 4), so a run that skipped samples can resume anywhere.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from megascratch.data.samples.dataset import Dataset, TokenSpan

Ranges = list[list[int]]
"""[first, stop) of each run of samples, in rising order, disjoint."""


def merge_ranges(*ranges: Iterable[Sequence[int]]) -> Ranges:
    """All ranges in order; those that touch or overlap are merged."""
    merged: Ranges = []
    for first, stop in sorted(tuple(pair) for some in ranges for pair in some):
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


class SkipSamples:
    """The samples of `dataset` without those in `ranges`."""

    def __init__(self, dataset: Dataset, ranges: Ranges):
        self.dataset, self.ranges = dataset, ranges

    def __len__(self) -> int:
        return max(len(self.dataset) - sum(stop - first for first, stop in self.ranges), 0)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.dataset[original_index(number, self.ranges)]

    def spans(self, number: int) -> list[TokenSpan]:
        """Where the tokens of sample `number` come from, in order."""
        return self.dataset.spans(original_index(number, self.ranges))
