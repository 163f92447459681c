"""Blends that follow one another in, one endless data set out: what `--data-stages` asks for.

    sample    0 ............ a ............ b ......
    blend     the first one  the second     the third

A corpus that two stages share goes on in the second where the first left it: nothing is read twice before everything
is read once, whatever the stages. Sample i is still a function of (files, seed, stages, i) alone.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from megascratch.data.samples.dataset import Blend, Dataset, TokenSpan


class Curriculum:
    """`parts` mixed by `weights[k]` (one per part, 0: not in this stage) from sample `firsts[k]` on.

    `firsts` begins with 0 and rises.
    """

    def __init__(self, parts: Sequence[Dataset], firsts: Sequence[int], weights: Sequence[Sequence[float]]):
        if len(firsts) != len(weights) or list(firsts) != sorted(set(firsts)) or firsts[0] != 0:
            raise ValueError(f"stages that begin at {list(firsts)} with {len(weights)} blends")
        self.parts, self.firsts, self.weights = list(parts), list(firsts), list(weights)
        self._blends: list[Blend] = []  # as far as known: a stage depends on what those in front of it have read

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, number: int) -> np.ndarray:
        part, sample = self.origin(number)
        return self.parts[part][sample]

    def spans(self, number: int) -> list[TokenSpan]:
        part, sample = self.origin(number)
        return self.parts[part].spans(sample)

    def origin(self, number: int) -> tuple[int, int]:
        """(data set, its sample) of sample `number`."""
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
        stage, starts = len(self._blends), np.zeros(len(self.parts), dtype=np.int64)
        for before, blend in enumerate(self._blends):
            starts += blend.taken(self.firsts[before + 1] - self.firsts[before])
        return Blend(self.parts, self.weights[stage], finite=False, starts=starts)
