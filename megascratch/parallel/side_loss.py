"""Losses that arise in the middle of the model: terms of the objective in addition to the one that the head returns.

The objective is a sum of fractions, one per term: coefficient x (sum over all tokens / number of tokens that the term
counts), over the global batch. The weight of a sum, loss scale x coefficient / number, is known on every rank before
the forward. So a layer of any stage can `join` its part of a sum to the graph, and no stage sends anything for it.

Each micro-batch has a `SideLosses` of its own, which its `Batch` and the forward's context carry to the layers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from megascratch.parallel.device_kind import widest_dtype


class TermSum(NamedTuple):
    """One term over a global batch: its sum and the number of tokens that it counts; the loss is their fraction."""

    total: float
    tokens: float

    @property
    def loss(self) -> float | None:
        """The mean; None where the term counts no token."""
        return self.total / self.tokens if self.tokens else None

    def plus(self, other: "TermSum") -> "TermSum":
        """Both global batches together."""
        return TermSum(self.total + other.total, self.tokens + other.tokens)


class _Joined(torch.autograd.Function):
    """x; backward gives `total` the gradient `weight`, as if weight x total were added to the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, total: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        ctx.kind = total.dtype, total.device
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        dtype, device = ctx.kind
        return grad, torch.full((), ctx.weight, dtype=dtype, device=device), None


class SideLosses:
    """What one micro-batch knows about the side terms on this rank.

    Args:
        weights: of each term: loss scale x coefficient / number of tokens of the global batch that the term counts.
    """

    def __init__(self, weights: Mapping[str, float]):
        self.weights = weights
        self._sums: dict[tuple[str, int], Tensor] = {}

    def join(self, x: Tensor, total: Tensor, term: str, layer: int, counts: bool) -> Tensor:
        """Adds a sum to a term of the loss. Returns x, which the caller must use in its place: backward reaches `total`
        through it. Recomputation joins again and changes nothing.

        Args:
            x: any tensor on the way to the loss, such as the layer's output.
            total: scalar; the sum over the tokens that this rank sees.
            layer: the global number of the layer, because several layers may add to one term.
            counts: False on a tensor rank that only repeats the sum of another rank. With sequence parallelism each
                rank sees other tokens, and all count.

        Raises: KeyError for a term that is not in `weights`.
        """
        weight = self.weights[term]
        if counts:
            self._sums[term, layer] = total.detach()
        return cast(Tensor, _Joined.apply(x, total, weight))  # type: ignore[no-untyped-call]

    def total(self, term: str) -> float | Tensor:
        """This rank's sum of a term over its layers, in the widest type; 0.0 if no layer of this rank has it."""
        wide = []
        for (name, _), value in self._sums.items():
            if name == term:
                wide.append(value.to(widest_dtype(value.device)))
        return sum(wide)
