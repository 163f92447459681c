"""Context parallelism by heads: ranks exchange heads for tokens, so that each attends with some of the heads over whole
samples (Ulysses; Jacobs et al. 2023, arXiv 2309.14509). Alone, or with the ring around groups of such ranks.

Each rank has query heads of its own. Where there are fewer key/value heads than ranks, neighbouring ranks get copies of
the same one, and the gradients of the copies are summed.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megascratch.layers.context import ForwardContext, Shares
from megascratch.layers.context_parallel.ring import around
from megascratch.layers.kernels.attention import Scores, attend
from megascratch.parallel.axis import Axis
from megascratch.parallel.context_axes import ContextAxes
from megascratch.parallel.exchanges import all_to_all


def heads_for_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    context: ForwardContext,
    window: int | None,
    scores: Scores,
    cp: ContextAxes,
) -> Tensor:
    """See `core.py`."""
    shares = context.shares
    assert shares is not None
    own = _OwnHeads(q, k, v, sinks, scores, cp.axis, shares.in_order)
    visible = shares.all_tokens.windowed(window)
    return own.back(attend(own.q, own.k, own.v, visible, own.scores, own.sinks))


def heads_and_ring(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    context: ForwardContext,
    window: int | None,
    scores: Scores,
    cp: ContextAxes,
) -> Tensor:
    """See `core.py`: heads for tokens among neighbours, and a ring around groups of them."""
    shares = context.shares
    assert shares is not None
    own = _OwnHeads(q, k, v, sinks, scores, cp.heads, _order_of_group(shares, cp))
    together = shares.joined(cp.heads.size)
    return own.back(around(own.q, own.k, own.v, own.sinks, together, window, own.scores, cp.ring))


def _order_of_group(shares: Shares, cp: ContextAxes) -> Tensor:
    """The places of the tokens of a group of neighbours, one rank after the other, in the order of their positions."""
    size = cp.heads.size
    first = cp.ring.rank * size
    positions = shares.cut.positions[first : first + size]
    return torch.from_numpy(positions.ravel().argsort()).to(shares.device)


class _OwnHeads:
    """The heads of one rank for the tokens of all ranks of an axis.

    Args:
        q, k, v, sinks, scores: of all heads and this rank's tokens.
        order: [S] the place of each token among those of all ranks, one rank after the other, by position.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        scores: Scores,
        axis: Axis,
        order: Tensor,
    ):
        ranks = axis.size
        heads = q.shape[1] // ranks
        copies = max(1, ranks // k.shape[1])
        k = _copied(k, copies)
        v = _copied(v, copies)
        groups = k.shape[1] // ranks
        by_rank = [_for_each_rank(x, ranks) for x in (q, k, v)]  # each [ranks, s, b, heads, d]
        widths = [heads, groups, groups]
        if v.shape[3] == q.shape[3]:
            mixed = _Exchanged.apply(torch.cat(by_rank, 3), axis)
            parts = mixed.split(widths, 3)
        else:
            parts = [_Exchanged.apply(part, axis) for part in by_rank]
        self.axis = axis
        self.order = order
        self.q, self.k, self.v = (part.flatten(0, 1)[order].permute(1, 2, 0, 3) for part in parts)
        first = axis.rank * heads
        self.sinks = None if sinks is None else sinks[first : first + heads]
        self.scores = scores._replace(first_head=scores.first_head + first)

    def back(self, out: Tensor) -> Tensor:
        """The output of these heads for all tokens [b, n/ranks, S, e] -> of all heads for this rank's [b, n, s, e]."""
        ranks = self.axis.size
        by_place = out.permute(2, 0, 1, 3)  # [S, b, n/ranks, e]
        places = torch.empty_like(self.order)
        places[self.order] = torch.arange(len(self.order), device=out.device)
        by_rank = by_place[places].unflatten(0, (ranks, -1))  # [ranks, s, b, n/ranks, e]
        heads = _Exchanged.apply(by_rank, self.axis)  # the first dim is now the rank of the heads
        return heads.permute(2, 0, 3, 1, 4).flatten(1, 2)


class _Exchanged(torch.autograd.Function):
    """Part i of x [ranks, ...] goes to rank i; backward sends the gradients back in the same way."""

    @staticmethod
    def forward(ctx, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return all_to_all(x, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return all_to_all(grad, ctx.axis), None


def _copied(x: Tensor, copies: int) -> Tensor:
    """Each head of x [b, g, s, d] as many times, one after the other."""
    return x if copies == 1 else x.repeat_interleave(copies, 1)


def _for_each_rank(x: Tensor, ranks: int) -> Tensor:
    """The heads of each rank: [b, n, s, d] -> [ranks, s, b, n/ranks, d]."""
    return x.unflatten(1, (ranks, -1)).permute(1, 3, 0, 2, 4)
