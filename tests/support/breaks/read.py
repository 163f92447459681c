"""Breaks of what a run reads: blends, and the last round of a validation; each with the law that must notice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from megascratch.data.samples.views import BLEND_BLOCK, Blend
from megascratch.training.loop import _Loop
from tests.support.blends import a_blend_is_the_greedy_one_beyond_its_first_block
from tests.support.validations import a_validation_is_over_the_whole_set


def blends(folder: Path, run: Callable) -> None:
    a_blend_is_the_greedy_one_beyond_its_first_block()


def validations(folder: Path, run: Callable) -> None:
    a_validation_is_over_the_whole_set(folder)


def first_block_for_ever(self, number):
    wanted, at = divmod(number, BLEND_BLOCK)
    while len(self._taken) <= wanted:
        self._choose(len(self._taken) - 1)
    if self._block is None:
        self._choose(wanted)
    part = int(self._block[1][at])
    return part, int(self.starts[part] + self._block[2][at])


def counts_anew(self, block):
    plain_choose(self, block)
    self._taken[block + 1] = np.bincount(self._block[1], minlength=len(self.parts))


def taken_of_one_block(self, count):
    return plain_taken(self, count) - self._taken[(count - 1) // BLEND_BLOCK]


class WholeRounds:
    """A data set that hides its last partial round."""

    def __init__(self, whole, size):
        self.whole, self.size = whole, size

    def __len__(self):
        return len(self.whole) // self.size * self.size

    def __getitem__(self, number):
        return self.whole[number]


def whole_rounds(self, split, valid, *rest):
    return plain_evaluate(self, split, WholeRounds(valid, self.training.global_batch_size), *rest)


plain_choose, plain_taken = Blend._choose, Blend.taken
plain_evaluate = _Loop._evaluate


BREAKS: dict[str, tuple] = {
    "a blend's block is stale from sample 65,536 on": (
        [(Blend, "origin", first_block_for_ever)],
        blends,
    ),
    "a blend's counts begin anew with each block": ([(Blend, "_choose", counts_anew)], blends),
    "a blend tells what one block alone has taken": (
        [(Blend, "taken", taken_of_one_block)],
        blends,
    ),
    "the last partial round of a validation is dropped": (
        [(_Loop, "_evaluate", whole_rounds)],
        validations,
    ),
}
