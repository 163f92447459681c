"""Context parallelism around a ring: keys and values go from rank to rank while each rank attends to those that it has
(Liu et al. 2023, arXiv 2310.01889), and the parts are merged by their log-sum-exp.

Ranks stop when no query of any of them sees keys from farther back. Backward sends keys and values around again, and
with them the sums of their gradients, which at last go home.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megascratch.layers.context import ForwardContext, Shares
from megascratch.layers.kernels.attention import (
    Scores,
    attend_backward,
    attend_forward,
    grad_of_sinks,
    join_sinks,
    merge,
)
from megascratch.layers.visible import Visible
from megascratch.parallel.axis import Axis
from megascratch.parallel.context_axes import ContextAxes
from megascratch.parallel.exchanges import start_shift


def ring(
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
    return around(q, k, v, sinks, context.shares, window, scores, cp.axis)


def around(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    shares: Shares,
    window: int | None,
    scores: Scores,
    axis: Axis,
) -> Tensor:
    """Attention of q [b, n, s, d] to the keys and values of all ranks of a ring, k and v [b, g, s, d] of each."""
    blocks = _Blocks(shares, window, axis)
    return _Around.apply(q, k, v, sinks, blocks, scores)


class _Blocks:
    """What this rank's queries see of the keys of each rank of the ring."""

    def __init__(self, shares: Shares, window: int | None, axis: Axis):
        self.axis = axis
        self.steps = shares.cut.distance(window) + 1  # blocks that reach this rank
        self.visible: list[Visible | None] = []  # by the number of ranks back; None: nothing
        for back in range(self.steps):
            other = (axis.rank - back) % axis.size
            visible = None
            if shares.cut.sees(axis.rank, other, window):
                visible = shares.seen_from(axis.rank, shares.cut.positions[other], window)
            self.visible.append(visible)


class _Around(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        blocks: _Blocks,
        scores: Scores,
    ) -> Tensor:
        widths = (k.shape[3], v.shape[3])
        wide = torch.promote_types(q.dtype, torch.float32)
        held = torch.cat((k, v), 3)  # [b, g, s, d + e]
        out = torch.zeros((*q.shape[:3], v.shape[3]), dtype=wide, device=q.device)
        lse = torch.full(q.shape[:3], -torch.inf, dtype=wide, device=q.device)
        for step, visible in enumerate(blocks.visible):
            coming = start_shift(held, blocks.axis) if step + 1 < blocks.steps else None
            if visible is not None:
                held_k, held_v = held.split(widths, 3)
                out, lse = merge(out, lse, *attend_forward(q, held_k, held_v, visible, scores))
            if coming is not None:
                held = coming.wait()
        if sinks is not None:
            out, lse = join_sinks(out, lse, sinks)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.rest = blocks, scores
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, sinks, out, lse = ctx.saved_tensors
        blocks, scores = ctx.rest
        axis = blocks.axis
        widths = (k.shape[3], v.shape[3])
        wide = torch.promote_types(q.dtype, torch.float32)
        held = torch.cat((k, v), 3)
        grad_q = torch.zeros(q.shape, dtype=wide, device=q.device)
        sums = None  # the gradient of what this rank holds, from the ranks that have held it
        for step, visible in enumerate(blocks.visible):
            coming = start_shift(held, axis) if step + 1 < blocks.steps else None
            own = torch.zeros(held.shape, dtype=wide, device=q.device)
            if visible is not None:
                held_k, held_v = held.split(widths, 3)
                parts = attend_backward(grad, q, held_k, held_v, out, lse, visible, scores)
                grad_q += parts[0]
                own = torch.cat(parts[1:], 3).to(wide)
            if sums is not None:
                own += sums.wait()
            last = step + 1 == blocks.steps
            sums = start_shift(own, axis, -step if last else 1)
            if coming is not None:
                held = coming.wait()
        assert sums is not None
        grad_k, grad_v = sums.wait().to(k.dtype).split(widths, 3)
        grad_sinks = None if sinks is None else grad_of_sinks(grad, out, lse, sinks)
        return grad_q.to(q.dtype), grad_k, grad_v, grad_sinks, None, None
