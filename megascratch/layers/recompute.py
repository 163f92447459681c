"""Activation recomputation (checkpointing): keeps only the inputs of a part of the model; backward runs it again.

    selective           parts of every layer, by name
      core_attn         the core of attention (scores, softmax, dropout)
      layernorm         what the norm before a sublayer returns: the linear layer that reads it keeps the norm's input
      mlp               the feed-forward
      activation        of an MLP, what its activation returns: its second product keeps the activation's input
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


class _Origin(NamedTuple):
    """How a tensor was computed, so that it can be computed again."""

    function: Callable[[Tensor], Tensor]
    x: Tensor


def forgettable(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns function(x). A linear layer that reads it keeps x instead, and computes it again in backward.

    It saves memory if backward needs x anyway, and costs nothing if another layer reads the result and keeps it.
    """
    y = function(x)
    if torch.is_grad_enabled():
        _note_origin(y, function, x)
    return y


@torch.compiler.disable
def _note_origin(y: Tensor, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Outside compiled graphs: within one, a tensor is a name for a value and has no attributes."""
    y.origin = _Origin(function, x.detach())  # type: ignore[attr-defined]


def to_keep(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """What to keep in place of x, and the function that makes x of it; None: keep x itself."""
    origin: _Origin | None = getattr(x, "origin", None)
    return (x, None) if origin is None else (origin.x, origin.function)


def with_recompute(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Returns function(*args). Its collectives run again in backward, on all ranks in the same order."""
    if not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result
