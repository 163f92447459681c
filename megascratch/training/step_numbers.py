"""The numbers of a step that all ranks need, summed over all ranks in one collective:

    [ sums of squares of the gradients, a slot each | parts of the loss terms | ranks with an overflow |
      ranks that ask to stop, for each exit code | ranks whose save is under way |
      elements of the gradient that are 0, if they are counted ]

A rank that has nothing to add to a slot adds 0, so every rank reads the same sums and takes the same decision in the
same step. The host reads them once; the slots of the norm are summed on the device first.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.config.exit_codes import STOPS
from megascratch.optim.grad_norm import norm_of
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.told import told

STOP_CODES = tuple(sorted(STOPS))


class Announcement(NamedTuple):
    """What a rank adds to the numbers of a step on behalf of the run."""

    exit_code: int = 0  # one of STOP_CODES, for which this rank asks to stop; 0: it does not
    saving: bool = False  # its save is under way


class StepNumbers(NamedTuple):
    """The same on all ranks."""

    norm: float  # of the gradients as they are: still multiplied by the loss scale
    terms: list[float]  # the sum of each loss term's parts
    overflow: bool  # a gradient of any rank is not finite
    exit_code: int  # the highest for which any rank asks to stop; 0: none
    saving: bool  # a save is under way on any rank
    num_zeros: int | None = (
        None  # elements of the gradient that are 0; None if they are not counted
    )


def sum_over_ranks(
    norm_parts: Tensor,
    loss_parts: Tensor,
    own: Announcement,
    world: Axis,
    zeros: Tensor | None = None,
) -> StepNumbers:
    """Called by all ranks, after the gradients are complete.

    Args:
        norm_parts: `GlobalNorm.parts` of this rank, fp64 [slots + 1].
        loss_parts: this rank's part of each loss term, fp64 [terms].
        zeros: the elements that are 0 among those that this rank counts, fp64 scalar; None on all ranks if they are not
            counted.
    """
    overflow = norm_parts.sum().isfinite().logical_not().to(norm_parts)
    announced = [*stop_counts(own.exit_code), float(own.saving)]
    own_numbers = [
        norm_parts[:-1],
        loss_parts,
        overflow.view(1),
        norm_parts.new_tensor(announced),
    ]
    if zeros is not None:
        own_numbers.append(zeros.view(1))
    sizes = [len(numbers) for numbers in own_numbers]
    slots, *others = all_reduce(torch.cat(own_numbers), world).split(sizes)
    imagined = [1.0] * (1 + sizes[1]) + [0.0] * sum(sizes[2:])
    norm, *rest = told(torch.cat((norm_of(slots).view(1), *others)), imagined)
    num_zeros = None if zeros is None else round(rest.pop())
    terms = rest[: sizes[1]]
    ranks_with_overflow, *ranks_asking, ranks_saving = rest[sizes[1] :]
    return StepNumbers(
        norm,
        terms,
        ranks_with_overflow > 0,
        agreed_code(ranks_asking),
        ranks_saving > 0,
        num_zeros,
    )


def stop_counts(exit_code: int) -> list[float]:
    """One number for each of STOP_CODES: 1 for the code for which this rank asks to stop, 0 for the others."""
    return [float(code == exit_code) for code in STOP_CODES]


def agreed_code(counts: list[float]) -> int:
    """The highest exit code for which any rank asks to stop; 0 for none.

    Args:
        counts: the number of ranks for each of STOP_CODES.
    """
    asked = [code for code, ranks in zip(STOP_CODES, counts, strict=True) if ranks > 0]
    return max(asked, default=0)
