"""Vocabulary-parallel cross-entropy: the vocabulary is split over tp, and no rank ever holds a full row of logits.

Two small all-reduces (each row's maximum; its sum of exponentials and the logit of its target) replace the gather of
the logits (Shoeybi et al. 2019, section 3). Padding columns count as -inf, so they change neither sum nor gradient
(law 6).
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.layers.kernels.cross_entropy import rows_of
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_reduce


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, valid: int, tp: Axis) -> Tensor:
        first = tp.rank * logits.shape[1]
        kind = rows_of(logits)
        # From here on the logits are overwritten: the caller does not use them again.
        rows = kind(logits, labels, first, valid, tp.size)
        peak = all_reduce(rows.peak(), tp, dist.ReduceOp.MAX)  # [n]
        total, target = rows.sums(peak)  # each [n]
        if tp.size > 1:
            total, target = all_reduce(torch.stack((total, target)), tp)
        ctx.save_for_backward(total, *rows.kept())
        ctx.rest = kind, first, valid, logits.dtype
        return total.log() - target

    @staticmethod
    def backward(ctx, grad: Tensor):
        total, *kept = ctx.saved_tensors
        kind, first, valid, dtype = ctx.rest
        return kind.gradient(kept, first, valid, total, grad).to(dtype), None, None, None


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, valid: int, tp: Axis) -> Tensor:
    """-log softmax(logits)[labels] per row, in fp32 (fp64 for fp64 logits).

    Args:
        logits: [n, v/tp], this rank's columns; overwritten.
        labels: [n] int64, ids in the full vocabulary.
        valid: the number of this rank's columns that are vocabulary; the rest is padding.
    """
    losses: Tensor = _CrossEntropy.apply(logits, labels, valid, tp)
    return losses
