"""The product with the output matrix and the loss, a few tokens at once, so that the logits of a micro-batch never
exist as a whole (compare Wijmans et al. 2024, arXiv 2411.09009).

The gradient of a sum of losses is known but for one factor, which the trainer knows before the forward. So the forward
computes the gradients of its input and of the matrix while it has the logits of a piece, and backward only hands them
over. That needs memory for one more gradient of the matrix, and no second product.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megascratch.layers.kernels.cross_entropy import rows_of
from megascratch.layers.kernels.products import product
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import (
    all_gather,
    all_reduce,
    start_all_reduce,
    start_reduce_scatter,
)


class Logits(NamedTuple):
    """How logits come from the product with the output matrix, and which of them count."""

    valid: int  # columns of this rank that are vocabulary
    scale: float | None = None
    softcap: float | None = None


def chunked_loss(
    x: Tensor,
    weight: nn.Parameter,
    labels: Tensor,
    mask: Tensor,
    logits: Logits,
    tp: Axis,
    *,
    rows: int,
    gather: bool,
    expected: float,
) -> Tensor:
    """The sum of the cross-entropies of tokens, each times its number in `mask`.

    Args:
        x: [n or n/tp, h] hidden states. weight: [v/tp, h].
        labels: [n] int64. mask: [n].
        rows: tokens whose logits exist at once.
        gather: x is split along dim 0 over tp.
        expected: the gradient that the sum will get; another one costs a rounding.
    """
    known = None if hasattr(weight, "grad_sink") and x.requires_grad else weight
    how = weight, labels, mask, logits, tp, rows, gather, expected
    total: Tensor = _ChunkedLoss.apply(x, known, how)
    return total


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, known: Tensor | None, how: tuple) -> Tensor:
        weight, labels, mask, logits, tp, rows, gather, expected = how
        whole = all_gather(x, tp) if gather else x  # [n, h]
        learns = ctx.needs_input_grad[0] or weight.requires_grad
        losses = []
        grad_x = torch.empty_like(whole) if learns else None
        grad_weight = None
        if learns and weight.requires_grad:
            wide = torch.promote_types(weight.dtype, torch.float32)
            grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        for start in range(0, len(whole), rows):
            piece = slice(start, start + rows)
            part = _Piece(whole[piece], weight, labels[piece], logits, tp)
            losses.append(part.losses * mask[piece])
            if grad_x is None:
                continue
            grad_logits = part.gradient(mask[piece].to(part.losses.dtype) * expected)
            grad_x[piece] = product(grad_logits, weight.t(), None)
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ whole[piece]
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.rest = weight, tp, gather, expected
        return torch.cat(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        grad_x, grad_weight = ctx.saved_tensors
        weight, tp, gather, expected = ctx.rest
        factor = grad / expected
        pending = None
        grad_x = grad_x * factor.to(grad_x.dtype)
        if tp.size > 1:
            pending = start_reduce_scatter(grad_x, tp) if gather else start_all_reduce(grad_x, tp)
        if grad_weight is not None:
            grad_weight = (grad_weight * factor).to(weight.dtype)
            sink = getattr(weight, "grad_sink", None)
            if sink is not None:
                sink.dense(weight, grad_weight)
                grad_weight = None
        if pending is not None:
            grad_x = pending.wait()
        return grad_x, grad_weight, None


class _Piece:
    """The logits and the losses of a few tokens."""

    def __init__(self, x: Tensor, weight: Tensor, labels: Tensor, logits: Logits, tp: Axis):
        self.logits = logits
        self.tanh: Tensor | None = None
        values = product(x, weight, None)  # [rows, v/tp]
        self.dtype = values.dtype
        if logits.scale is not None:
            values = values * logits.scale
        if logits.softcap is not None:
            self.tanh = torch.tanh(values / logits.softcap)
            values = self.tanh * logits.softcap
        self.kind = rows_of(values)
        self.first = tp.rank * values.shape[1]
        found = self.kind(values, labels, self.first, logits.valid, tp.size)
        peak = all_reduce(found.peak(), tp, dist.ReduceOp.MAX)
        total, target = found.sums(peak)  # each [rows]
        if tp.size > 1:
            total, target = all_reduce(torch.stack((total, target)), tp)
        self.found = found
        self.total = total
        self.losses = total.log() - target

    def gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the product, from that of the losses."""
        kept = self.found.kept()
        found = self.kind.gradient(kept, self.first, self.logits.valid, self.total, grad)
        if self.tanh is not None:
            found = found * (1 - self.tanh.square())
        if self.logits.scale is not None:
            found = found * self.logits.scale
        return found.to(self.dtype)
