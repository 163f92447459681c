"""Vocabulary-parallel cross-entropy: the vocabulary is split over tp, and no rank ever holds a full row of logits.

Two small all-reduces (each row's maximum; its sum of exponentials and the logit of its target) replace the gather of
the logits (Shoeybi et al. 2019, section 3). Padding columns are -inf, so they change neither sum nor gradient (law 6).
"""

from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.mesh import Axis

try:
    from megascratch.layers.kernels.gpu import row_statistics, to_gradient
except Exception:  # Triton is missing or its version does not fit
    row_statistics = to_gradient = None  # type: ignore[assignment]

_BLOCK = 1 << 19  # elements per block on a CPU, so that the passes over a block stay in cache


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, valid: int, tp: Axis) -> Tensor:
        x = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        # From here on x is overwritten in place: the caller does not use the logits again.
        rows, width = x.shape  # [n, v/tp]
        if valid < width:
            x[:, valid:] = -torch.inf
        peak = all_reduce(x.amax(-1), tp, dist.ReduceOp.MAX)  # [n]
        local = labels
        mine = None
        if tp.size > 1:
            local, mine = _in_part(labels, width, tp)
        target = x.gather(1, local.unsqueeze(1)).squeeze(1) - peak  # [n]
        if mine is not None:
            target = target.where(mine, 0)
        total = torch.empty_like(peak)
        step = max(1, _BLOCK // width if x.device.type == "cpu" else rows)
        for start in range(0, rows, step):
            block = slice(start, start + step)
            shifted = x[block].sub_(peak[block, None])
            torch.sum(shifted.exp_(), -1, out=total[block])
        if tp.size > 1:
            total, target = all_reduce(torch.stack((total, target)), tp)
        ctx.save_for_backward(x, total, local, mine)
        ctx.dtype = logits.dtype
        return total.log() - target

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, total, local, mine = ctx.saved_tensors
        x.mul_((grad / total).unsqueeze(1))  # grad * softmax
        at_target = -grad if mine is None else -grad * mine
        x.scatter_add_(1, local.unsqueeze(1), at_target.unsqueeze(1))
        return x.to(ctx.dtype), None, None, None


class _TritonCrossEntropy(torch.autograd.Function):
    """The same for logits on CUDA, in one pass forward and one backward; kept in their own type, not in fp32."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, valid: int, tp: Axis) -> Tensor:
        first = tp.rank * logits.shape[1]
        here, total, target = row_statistics(logits, labels, first, valid)
        peak = all_reduce(here.clone(), tp, dist.ReduceOp.MAX)
        total = total * (here - peak).exp()
        total, target = all_reduce(torch.stack((total, target)), tp)
        ctx.save_for_backward(logits, labels, peak, total)
        ctx.columns = first, valid
        return total.log() + (peak - target)

    @staticmethod
    def backward(ctx, grad: Tensor):
        logits, labels, peak, total = ctx.saved_tensors
        first, valid = ctx.columns
        to_gradient(logits, labels, first, valid, peak, total, grad.contiguous())
        return logits, None, None, None


@lru_cache(maxsize=8)
@torch.inference_mode(False)
@torch.enable_grad()
def kernel_matches_reference(device: torch.device) -> bool:
    """Whether the Triton kernels run on the device and match the plain steps; if not, the plain steps are used."""
    tp = Axis.alone("tp")
    labels = torch.arange(6, device=device) * 50
    logits = torch.linspace(-4, 4, 6 * 300, device=device).view(6, 300).sin().mul(9)
    results = []
    try:
        for function in (_CrossEntropy, _TritonCrossEntropy):
            x = logits.clone().requires_grad_()
            losses = function.apply(x * 1, labels, 290, tp)
            (grad,) = torch.autograd.grad(losses, x, labels.float())
            results += [losses, grad]
    except Exception:  # an error of the compiler or the driver, or there is no kernel
        return False
    plain_losses, plain_grad, losses, grad = results
    equal_losses = torch.allclose(plain_losses, losses, 1e-5, 1e-5)
    return equal_losses and torch.allclose(plain_grad, grad, 1e-4, 1e-4)


def _in_part(labels: Tensor, width: int, tp: Axis) -> tuple[Tensor, Tensor]:
    """Labels as column numbers of this rank (0 for those of other ranks), and a mask of the labels that it has."""
    local = labels - tp.rank * width
    mine = (local >= 0) & (local < width)
    return local.where(mine, 0), mine


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, valid: int, tp: Axis) -> Tensor:
    """-log softmax(logits)[labels] per row, in fp32 (fp64 for fp64 logits).

    Args:
        logits: [n, v/tp], this rank's columns; overwritten.
        labels: [n] int64, ids in the full vocabulary.
        valid: the number of this rank's columns that are vocabulary; the rest is padding.
    """
    if logits.is_cuda and logits.dtype != torch.float64 and kernel_matches_reference(logits.device):
        return _TritonCrossEntropy.apply(logits, labels, valid, tp)
    return _CrossEntropy.apply(logits, labels, valid, tp)
