"""Dropout that does not depend on the layout: its mask is a function of (seed, sample, site, global element), law 3."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megascratch.parallel.mesh import Axis
from megascratch.parallel.random import keep_mask, sample_keys

try:
    from megascratch.layers.kernels.gpu import dropped
except Exception:  # Triton is missing or its version does not fit
    dropped = None  # type: ignore[assignment]


class _Mask(NamedTuple):
    """The arguments of `gpu.dropped` that define the mask."""

    seed: int
    site: int
    p: float
    run_length: int
    first: int


class _Dropped(torch.autograd.Function):
    """Dropout of a CUDA tensor in one kernel; backward computes the mask again instead of keeping it."""

    @staticmethod
    def forward(ctx, x: Tensor, samples: Tensor, mask: _Mask) -> Tensor:
        ctx.save_for_backward(samples)
        ctx.mask = mask
        return dropped(x.contiguous(), samples, *mask)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return dropped(grad.contiguous(), *ctx.saved_tensors, *ctx.mask), None, None


def _in_one_kernel(x: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False  # the compiler fuses the plain steps
    return x.is_cuda and kernel_matches_reference(x.device)


@lru_cache(maxsize=8)
def kernel_matches_reference(device: torch.device) -> bool:
    """Whether the Triton kernel runs on the device and drops the right elements; if not, the plain steps are used."""
    x = torch.ones(3, 2, 5, device=device)  # [s, b, h]
    samples = torch.tensor([7, 2**40], device=device)
    keys = sample_keys(1, 2, samples)[:, None]  # [b, 1]
    index = torch.arange(10, 25, device=device).view(3, 1, 5)
    keep = keep_mask(keys, index, 0.4)
    try:
        return torch.allclose(dropped(x, samples, *_Mask(1, 2, 0.4, 5, 10)), keep / 0.6)
    except Exception:  # an error of the compiler or the driver, or there is no kernel
        return False


class Dropout(nn.Module):
    """Dropout on the residual stream [s or s/tp, b, h]; `site` is the number of this dropout in the model."""

    def __init__(self, p: float, seed: int, site: int, tp: Axis, sequence_parallel: bool = False):
        super().__init__()
        self.p = p
        self.seed = seed
        self.site = site
        self.part = tp.rank if sequence_parallel else 0

    def forward(self, x: Tensor, samples: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        s, _, h = x.shape
        if _in_one_kernel(x):
            return _Dropped.apply(
                x, samples, _Mask(self.seed, self.site, self.p, h, self.part * s * h)
            )
        position = torch.arange(self.part * s, (self.part + 1) * s, device=x.device)
        index = position[:, None, None] * h + torch.arange(h, device=x.device)  # [s, 1, h]
        keys = sample_keys(self.seed, self.site, samples)[:, None]  # [b, 1]
        keep = keep_mask(keys, index, self.p)  # [s, b, h]
        return x * keep / (1 - self.p)


class AttentionDropout(nn.Module):
    """Dropout on attention weights [b, n/tp, s, s]; the heads of a rank keep their global numbers."""

    def __init__(self, p: float, seed: int, site: int, tp: Axis):
        super().__init__()
        self.p = p
        self.seed = seed
        self.site = site
        self.rank = tp.rank

    def forward(self, x: Tensor, samples: Tensor) -> Tensor:
        _, heads, queries, keys = x.shape
        if _in_one_kernel(x):
            size = heads * queries * keys
            return _Dropped.apply(
                x, samples, _Mask(self.seed, self.site, self.p, size, self.rank * size)
            )
        head = torch.arange(self.rank * heads, (self.rank + 1) * heads, device=x.device)
        row = head[:, None] * queries + torch.arange(queries, device=x.device)  # [n/tp, q]
        index = row[:, :, None] * keys + torch.arange(keys, device=x.device)  # [n/tp, q, k]
        sample_key = sample_keys(self.seed, self.site, samples)[:, None, None, None]  # [b, 1, 1, 1]
        keep = keep_mask(sample_key, index, self.p)  # [b, n/tp, q, k]
        return x * keep / (1 - self.p)
