"""Both sides of a benchmark do the same work: they begin with the same weights, see the same samples, and their losses
agree step by step to rounding. A ratio of times says nothing where they do not.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megascratch.config.resolve import resolve
from megascratch.config.settings import Config, ParallelConfig
from megascratch.model.build import build_chunks
from megascratch.parallel.mesh import Mesh

STEPS = 6
WITHIN = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative difference of two losses that rounding explains. In fp32 (24 bits) sums in another order differ by some
1e-7; AdamW divides each gradient by its own size, so that the sign of an element near zero may turn, and each of its
steps moves every weight by the learning rate at most: some 1e-6 after six steps of a small model, and 1e-4 of one with
a hundred million weights, where only fp64 can tell rounding from other work. bf16 has 8 bits, and the two sides round
at other places. Other weights make the losses differ by 1e-1, another order of samples by 1e-2."""


class Losses(NamedTuple):
    """Of both sides, step by step."""

    ours: list[float]
    theirs: list[float]

    @property
    def apart(self) -> float:
        """The largest relative difference."""
        return max(abs(a - b) / abs(b) for a, b in zip(self.ours, self.theirs, strict=True))

    def __str__(self) -> str:
        return (
            f"loss after {len(self.ours)} steps: ours {self.ours[-1]:.5f}, theirs {self.theirs[-1]:.5f}, "
            f"at most {self.apart:.1e} apart"
        )


def first_losses(
    ours: Callable[[], float], theirs: Callable[[], float], steps: int = STEPS
) -> Losses:
    """Takes the first steps of both sides, in turn; each call is a whole step and gives its loss."""
    pairs = [(ours(), theirs()) for _ in range(steps)]
    return Losses([a for a, _ in pairs], [b for _, b in pairs])


def require_same_work(name: str, losses: Losses, dtype: torch.dtype = torch.float32) -> None:
    """Prints both losses. Exits with 1 where they part by more than rounding."""
    print(f"{name}{losses}", flush=True)
    if not losses.apart <= WITHIN[dtype]:
        sys.exit(
            f"{name.strip() or 'the two sides'}: the losses part by {losses.apart:.1e}, more than the "
            f"{WITHIN[dtype]:.0e} that rounding explains: they do not do the same work"
        )


def initial_weights(config: Config) -> dict[str, Tensor]:
    """megascratch's initial weights of a config, whole, by name; the same on every layout."""
    dtype = torch.float64 if config.optim.fp64 else torch.float32
    alone = resolve(replace(config, parallel=ParallelConfig()), 1)
    (chunk,) = build_chunks(alone.model, alone.parallel, Mesh.alone(), dtype, alone.training.seed)
    return {name: weight.detach() for name, weight in chunk.named_parameters()}


@torch.no_grad()
def copy_weights(weights: dict[str, Tensor], model: nn.Module, names: dict[str, list[str]]) -> None:
    """Fills the parameters of `model`, or of a stage that has some of them, from megascratch's `weights`.

    `names`: megascratch's name -> those of the parameters whose rows it holds, one below the other; `{}` in both stands
    for the number of a layer.

    Raises: ValueError where a parameter gets nothing.
    """
    parameters = dict(model.named_parameters())
    left = {name for name, _ in model.named_parameters()}
    for name, weight in weights.items():
        number = name.split(".")[1] if name.startswith("layers.") else ""
        parts = names[name.replace(f".{number}.", ".{}.") if number else name]
        for part, rows in zip(parts, weight.chunk(len(parts)), strict=True):
            target = part.format(number)
            if target in left:
                parameters[target].copy_(rows)
                left.remove(target)
    if left:
        raise ValueError(f"no weights for {', '.join(sorted(left))}")
