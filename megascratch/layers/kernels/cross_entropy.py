"""The passes of cross-entropy over a rank's columns of the logits, by torch's operations or by Triton; `layers/loss.py`
has what is between them, the sums over all ranks.

    Rows(logits, labels, first, valid)   reads the logits, and may overwrite them
    .peak()                              each row's maximum
    .sums(peak)                          each row's sum of exp(x - peak), and x - peak at its label
    .kept()                              the tensors that backward needs
    Rows.gradient(kept, ...)             the gradient of the logits, in their memory
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from megascratch.layers.kernels.choice import are_ordinary
from megascratch.parallel.device_kind import device_kind, note_launch

try:
    from megascratch.layers.kernels.gpu import row_statistics, to_gradient
except Exception:  # Triton is missing or its version does not fit
    row_statistics = to_gradient = None  # type: ignore[assignment]

_BLOCK = 1 << 19  # elements per block on a CPU, so that the passes over a block stay in cache


class Rows(Protocol):
    """A rank's columns [n, v/tp] of the logits, and what is computed from them row by row.

    Args:
        labels: [n] int64, ids in the full vocabulary; the columns begin at id `first`.
        valid: the number of columns that are vocabulary; the rest is padding and gets no gradient.
        tp: the number of ranks that share a row.
    """

    def __init__(self, logits: Tensor, labels: Tensor, first: int, valid: int, tp: int): ...

    def peak(self) -> Tensor: ...

    def sums(self, peak: Tensor) -> tuple[Tensor, Tensor]: ...

    def kept(self) -> Sequence[Tensor | None]: ...

    @staticmethod
    def gradient(
        kept: Sequence[Any], first: int, valid: int, total: Tensor, grad: Tensor
    ) -> Tensor:
        """The gradient of the logits, grad times (softmax - 1 at the label); in their type or a wider one."""
        ...


class PlainRows:
    """torch's operations in fp32 (fp64 for fp64 logits). The logits become their exponentials, then the gradient."""

    def __init__(self, logits: Tensor, labels: Tensor, first: int, valid: int, tp: int):
        wide = logits.dtype in (torch.float32, torch.float64)
        self.x = logits if wide else logits.float()
        width = self.x.shape[1]
        if valid < width:
            self.x[:, valid:] = -torch.inf  # changes neither sum nor gradient
        self.local = labels  # as column numbers
        self.mine: Tensor | None = None  # None: every row's label is here
        if tp > 1:
            local = labels - first
            self.mine = (local >= 0) & (local < width)
            self.local = local.where(self.mine, 0)

    def peak(self) -> Tensor:
        return self.x.amax(-1)

    def sums(self, peak: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x
        rows, width = x.shape
        target = x.gather(1, self.local.unsqueeze(1)).squeeze(1) - peak  # [n]
        if self.mine is not None:
            target = target.where(self.mine, 0)
        total = torch.empty_like(peak)
        step = max(1, _BLOCK // width if device_kind(x) == "cpu" else rows)
        for start in range(0, rows, step):
            block = slice(start, start + step)
            shifted = x[block].sub_(peak[block, None])
            torch.sum(shifted.exp_(), -1, out=total[block])
        return total, target

    def kept(self) -> Sequence[Tensor | None]:
        return self.x, self.local, self.mine

    @staticmethod
    def gradient(
        kept: Sequence[Any], first: int, valid: int, total: Tensor, grad: Tensor
    ) -> Tensor:
        x, local, mine = kept
        x.mul_((grad / total).unsqueeze(1))  # grad * softmax
        at_target = -grad if mine is None else -grad * mine
        return x.scatter_add_(1, local.unsqueeze(1), at_target.unsqueeze(1))


class TritonRows:
    """One pass over the logits each way; they stay in their own type and become the gradient in backward."""

    def __init__(self, logits: Tensor, labels: Tensor, first: int, valid: int, tp: int):
        self.logits = logits
        self.labels = labels
        found = torch.empty(3, len(logits), dtype=torch.float32, device=logits.device)
        if logits.is_meta:
            note_launch("row_statistics")
        else:
            row_statistics(logits, labels, first, valid, found)
        self.here, self.total, self.target = found
        self.mine: Tensor | None = None
        if tp > 1:
            self.mine = (labels >= first) & (labels < first + valid)

    def peak(self) -> Tensor:
        return self.here.clone()

    def sums(self, peak: Tensor) -> tuple[Tensor, Tensor]:
        self.whole_peak = peak
        target = self.target - peak
        if self.mine is not None:
            target = target.where(self.mine, 0)
        return self.total * (self.here - peak).exp(), target

    def kept(self) -> Sequence[Tensor | None]:
        return self.logits, self.labels, self.whole_peak

    @staticmethod
    def gradient(
        kept: Sequence[Any], first: int, valid: int, total: Tensor, grad: Tensor
    ) -> Tensor:
        logits, labels, peak = kept
        grad = grad.contiguous()
        if logits.is_meta:
            note_launch("to_gradient")
        else:
            to_gradient(logits, labels, first, valid, peak, total, grad)
        return logits


def rows_of(logits: Tensor) -> type[Rows]:
    """The passes that are used for these logits."""
    on_cuda = device_kind(logits) == "cuda"
    if not on_cuda or logits.dtype == torch.float64 or not are_ordinary(logits):
        return PlainRows
    usable = logits.is_meta or kernel_matches_reference(logits.device)
    return TritonRows if usable else PlainRows


@lru_cache(maxsize=8)
@torch.inference_mode(False)
@torch.no_grad()
def kernel_matches_reference(device: torch.device) -> bool:
    """Whether the Triton kernels run on the device and match the plain steps; if not, the plain steps are used."""
    labels = torch.arange(6, device=device) * 50
    logits = torch.linspace(-4, 4, 6 * 300, device=device).view(6, 300).sin().mul(9)
    plain_loss, plain_grad = _loss_and_gradient(PlainRows, logits.clone(), labels)
    try:
        loss, grad = _loss_and_gradient(TritonRows, logits, labels)
    except Exception:  # an error of the compiler or the driver, or there is no kernel
        return False
    equal_losses = torch.allclose(plain_loss, loss, 1e-5, 1e-5)
    return equal_losses and torch.allclose(plain_grad, grad, 1e-4, 1e-4)


def _loss_and_gradient(kind: type[Rows], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The results for 300 columns of which the last 10 are padding; the labels are the gradient of the losses."""
    rows = kind(logits, labels, 0, 290, 1)
    total, target = rows.sums(rows.peak())
    kept = rows.kept()
    return total.log() - target, kind.gradient(kept, 0, 290, total, labels.float())
