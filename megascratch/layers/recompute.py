"""Activation recomputation (checkpointing): keeps only the inputs of a part of the model; backward runs it again.

    selective           the core of attention (scores, softmax, dropout) of every layer
    full, uniform, n    units of n layers; each keeps only its input
    full, block, n      the first n layers of each chunk, one by one; the others keep everything

(Chen et al. 2016, arXiv 1604.06174; Korthikanti et al. 2022, arXiv 2205.05198, section 5; Megatron-LM's names.) The
result is exact without saving a random state, because dropout does not use a generator (law 3). Weight gradients are
added once, since only the forward runs twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class RecomputeUnit(NamedTuple):
    """Layers [start, stop) of a chunk; `again`: only their input is kept, and backward computes them again."""

    start: int
    stop: int
    again: bool


def units(layers: int, block: bool, number: int) -> list[RecomputeUnit]:
    """The units of a chunk with that many layers under full recomputation, in order: block, or else uniform."""
    cut = []
    if block:
        for layer in range(min(number, layers)):
            cut.append(RecomputeUnit(layer, layer + 1, True))
        if number < layers:
            cut.append(RecomputeUnit(number, layers, False))
    else:
        for start in range(0, layers, number):
            cut.append(RecomputeUnit(start, min(start + number, layers), True))
    return cut


def with_recompute(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Returns function(*args). Its collectives run again in backward, on all ranks in the same order."""
    if not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result
