"""Context parallelism by all-gather: each rank attends from its own queries to the keys and values of all ranks, as in
Llama 3 (arXiv 2407.21783, section 3.3.2). Backward gathers them again instead of keeping them.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megascratch.layers.context import ForwardContext
from megascratch.layers.kernels.attention import (
    Scores,
    attend_backward,
    attend_forward,
    grad_of_sinks,
    join_sinks,
)
from megascratch.layers.visible import Visible
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_gather, reduce_scatter
from megascratch.parallel.context_axes import ContextAxes


def gathered(
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
    assert context.shares is not None
    order = context.shares.in_order  # [S]
    visible = context.shares.seen_from(cp.axis.rank, np.arange(len(order)), window)
    return _Gathered.apply(q, k, v, sinks, visible, scores, order, cp.axis)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        visible: Visible,
        scores: Scores,
        order: Tensor,
        axis: Axis,
    ) -> Tensor:
        all_k, all_v = _all_keys(k, v, order, axis)
        out, lse = attend_forward(q, all_k, all_v, visible, scores)
        if sinks is not None:
            out, lse = join_sinks(out, lse, sinks)
        ctx.save_for_backward(q, k, v, sinks, out, lse, order)
        ctx.rest = visible, scores, axis
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, sinks, out, lse, order = ctx.saved_tensors
        visible, scores, axis = ctx.rest
        all_k, all_v = _all_keys(k, v, order, axis)
        grad_q, grad_k, grad_v = attend_backward(grad, q, all_k, all_v, out, lse, visible, scores)
        grad_sinks = None if sinks is None else grad_of_sinks(grad, out, lse, sinks)
        both = torch.cat((grad_k, grad_v), 3).movedim(2, 0)  # [S, b, g, d + e]
        by_rank = torch.empty_like(both, memory_format=torch.contiguous_format)
        by_rank[order] = both
        mine = reduce_scatter(by_rank, axis).movedim(0, 2)  # [b, g, s, d + e]
        grad_k, grad_v = mine.split((k.shape[3], v.shape[3]), 3)
        return grad_q, grad_k, grad_v, grad_sinks, None, None, None, None


def _all_keys(k: Tensor, v: Tensor, order: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Keys and values of the whole sample in the order of their positions, each [b, g, S, d].

    Args:
        order: [S] the place of each position among the tokens of all ranks, one rank after the other.
    """
    mine = torch.cat((k, v), 3).movedim(2, 0)  # [s, b, g, d + e]
    whole = all_gather(mine, axis)[order].movedim(0, 2)  # [b, g, S, d + e]
    all_k, all_v = whole.split((k.shape[3], v.shape[3]), 3)
    return all_k, all_v
