"""Data curriculum (`--data-stages`): blends that follow one another, as one endless dataset.

    sample    0 ............ a ............ b ......
    blend     the first one  the second     the third

A corpus that two stages share continues in the second stage where the first stopped: no sample is read twice before
all are read once, whatever the stages. Sample i is still a function of (files, seed, stages, i) alone.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from megascratch.data.samples.dataset import Blend, Dataset, TokenSpan


class Curriculum:
    """The datasets `parts`, blended by `weights[k]` (one per part, 0: not in this stage) from sample `firsts[k]`.

    `firsts` begins with 0 and increases.
    """

    def __init__(self, parts: Sequence[Dataset], firsts: Sequence[int], weights: Sequence[Sequence[float]]):
        if len(firsts) != len(weights) or list(firsts) != sorted(set(firsts)) or firsts[0] != 0:
            raise ValueError(f"stages that begin at {list(firsts)} with {len(weights)} blends")
        self.parts, self.firsts, self.weights = list(parts), list(firsts), list(weights)
        self._blends: list[Blend] = []  # of the first stages; a stage depends on what the previous ones have read

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, number: int) -> np.ndarray:
        part, sample = self.origin(number)
        return self.parts[part][sample]

    def spans(self, number: int) -> list[TokenSpan]:
        part, sample = self.origin(number)
        return self.parts[part].spans(sample)

    def origin(self, number: int) -> tuple[int, int]:
        """(dataset, its sample) of sample `number`."""
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
        for previous, blend in enumerate(self._blends):
            starts += blend.taken(self.firsts[previous + 1] - self.firsts[previous])
        return Blend(self.parts, self.weights[stage], finite=False, starts=starts)
