"""Zeroes elements by their global numbers: one Triton kernel on CUDA, plain steps elsewhere."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megascratch.layers.kernels.choice import are_ordinary
from megascratch.parallel.device_kind import device_kind, note_launch
from megascratch.parallel.random import keep_mask, sample_keys

try:
    from megascratch.layers.kernels.gpu import dropped
except Exception:  # Triton is missing or its version does not fit
    dropped = None  # type: ignore[assignment]


class Site(NamedTuple):
    """One dropout of the model: what its random numbers depend on in addition to sample and element."""

    seed: int
    number: int
    p: float


class Elements(NamedTuple):
    """The global numbers of the elements of one sample: row x width + column.

    `rows` [r] and `columns` [c] are int64; no columns: 0 ... c - 1. `width` is that of the whole tensor.
    """

    rows: Tensor
    columns: Tensor | None
    width: int


def drop(x: Tensor, samples: Tensor, elements: Elements, site: Site, sample_dim: int) -> Tensor:
    """x / (1 - p) where `random.keep_mask` keeps an element, else 0.

    Args:
        x: [r, b, c], or [b, r, c] by `sample_dim` (1 or 0); r may be several dims.
        samples: [b] int64 global numbers.
    """
    if _in_one_kernel(x):
        return _Dropped.apply(x, samples, elements, site, sample_dim)
    return x * _kept(x, samples, elements, site, sample_dim) / (1 - site.p)


def _kept(x: Tensor, samples: Tensor, elements: Elements, site: Site, sample_dim: int) -> Tensor:
    """Bool in the shape of x: True for what stays."""
    columns = elements.columns
    if columns is None:
        columns = torch.arange(x.shape[-1], device=x.device)
    index = elements.rows[:, None] * elements.width + columns  # [r, c]
    keys = sample_keys(site.seed, site.number, samples)[:, None]  # [b, 1]
    if sample_dim == 0:
        keys = keys[:, None]  # [b, 1, 1]
    return keep_mask(keys, index.unsqueeze(sample_dim), site.p).view(x.shape)


class _Dropped(torch.autograd.Function):
    """Dropout of a CUDA tensor in one kernel; backward computes the mask again instead of keeping it."""

    @staticmethod
    def forward(
        ctx, x: Tensor, samples: Tensor, elements: Elements, site: Site, sample_dim: int
    ) -> Tensor:
        ctx.save_for_backward(samples, elements.rows, elements.columns)
        ctx.how = elements.width, site, sample_dim
        return _dropped(x.contiguous(), samples, sample_dim, *elements, *site)

    @staticmethod
    def backward(ctx, grad: Tensor):
        samples, rows, columns = ctx.saved_tensors
        width, site, sample_dim = ctx.how
        grad = _dropped(grad.contiguous(), samples, sample_dim, rows, columns, width, *site)
        return grad, None, None, None, None


def _dropped(x: Tensor, *how: Any) -> Tensor:
    """`gpu.dropped` into a new tensor; on the meta device there is nothing to compute."""
    out = torch.empty_like(x)
    if x.is_meta:
        note_launch("dropped")
    else:
        dropped(x, out, *how)
    return out


def _in_one_kernel(x: Tensor) -> bool:
    if device_kind(x) != "cuda" or not are_ordinary(x):
        return False
    return x.is_meta or kernel_matches_reference(x.device)


@lru_cache(maxsize=8)
def kernel_matches_reference(device: torch.device) -> bool:
    """Whether the Triton kernel runs on the device and drops the right elements; if not, the plain steps are used."""
    samples = torch.tensor([7, 2**40], device=device)
    rows = torch.tensor([2, 9, 4], device=device)
    columns = torch.tensor([5, 0, 3, 1, 6], device=device)
    site = Site(1, 2, 0.4)
    try:
        for sample_dim, shape in ((1, (3, 2, 5)), (0, (2, 3, 5))):
            for elements in (Elements(rows, None, 5), Elements(rows, columns, 7)):
                x = torch.ones(shape, device=device)
                kept = _kept(x, samples, elements, site, sample_dim)
                found = _dropped(x, samples, sample_dim, *elements, *site)
                if not torch.allclose(found, kept / 0.6):
                    return False
    except Exception:  # an error of the compiler or the driver, or there is no kernel
        return False
    return True
