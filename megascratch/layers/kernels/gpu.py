"""Triton kernels for cross-entropy over long rows of logits and for layout-independent dropout.

They compute the same as the plain steps in `layers/loss.py` and `layers/kernels/dropout.py`, with fewer passes over
memory and less of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megascratch.parallel.random import GOLDEN, MIX_1, MIX_2, mixed

_COLUMNS = 8192  # of a row, per step of a program
_ELEMENTS = 1024  # of a tensor, per program
_GOLDEN, _MIX_1, _MIX_2 = (tl.constexpr(number % (1 << 64)) for number in (GOLDEN, MIX_1, MIX_2))


@triton.jit
def _statistics(logits, stride, labels, first, valid, peak, total, target, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    most = tl.full((), -float("inf"), tl.float32)
    added = tl.zeros((), tl.float32)
    for start in range(0, valid, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(logits + column, mask=column < valid, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(x, 0))
        added = added * tl.exp(most - higher) + tl.sum(tl.exp(x - higher), 0)
        most = higher
    label = tl.load(labels + row) - first
    mine = (label >= 0) & (label < valid)
    tl.store(peak + row, most)
    tl.store(total + row, added)
    tl.store(target + row, tl.load(logits + label, mask=mine, other=0.0).to(tl.float32))


@triton.jit
def _gradient(
    logits, stride, labels, first, valid, width, peak, total, grad, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = logits + row * stride + column
    scale = tl.load(grad + row)
    x = tl.load(place, mask=column < valid, other=-float("inf")).to(tl.float32)
    share = tl.exp(x - tl.load(peak + row)) * (scale / tl.load(total + row))
    hit = (column == tl.load(labels + row) - first) & (column < valid)
    tl.store(
        place, tl.where(hit, share - scale, share).to(logits.dtype.element_ty), mask=column < width
    )


def row_statistics(logits: Tensor, labels: Tensor, first: int, valid: int, out: Tensor) -> None:
    """For each row: the largest logit, the sum of exp(logit - largest), and the logit of its label, 0 if the label is
    not among the columns.

    Args:
        out: fp32 [3, n], overwritten with the three.
        logits: [n, v/tp], rows contiguous.
        labels: [n] int64, ids in the full vocabulary; the columns begin at id `first`.
        valid: the number of columns that are not padding.
    """
    peak, total, target = out
    _statistics[len(logits),](
        logits,
        logits.stride(0),
        labels,
        first,
        valid,
        peak,
        total,
        target,
        COLUMNS=_COLUMNS,
        num_warps=16,
    )


def to_gradient(
    logits: Tensor,
    labels: Tensor,
    first: int,
    valid: int,
    peak: Tensor,
    total: Tensor,
    grad: Tensor,
) -> None:
    """Overwrites the logits with the gradient of -log softmax times `grad` of each row; 0 for padding."""
    blocks = triton.cdiv(logits.shape[1], _COLUMNS)
    _gradient[len(logits), blocks](
        logits,
        logits.stride(0),
        labels,
        first,
        valid,
        logits.shape[1],
        peak,
        total,
        grad,
        COLUMNS=_COLUMNS,
        num_warps=16,
    )
    # or a second backward would read the gradient as logits
    torch.autograd.graph.increment_version(logits)


@triton.jit
def _mixed(x):  # random.mix64; unsigned numbers shift zeros in
    x *= _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit(do_not_specialize=["seed", "site"])
def _dropped(
    x,
    out,
    samples,
    rows,
    columns,
    sample_count,
    sample_step,
    row_count,
    row_step,
    run_length,
    width,
    blocks,
    seed,
    site,
    HAS_COLUMNS: tl.constexpr,
    LEAST: tl.constexpr,
    KEPT: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    run = program // blocks
    offset = program % blocks * ELEMENTS + tl.arange(0, ELEMENTS)
    there = offset < run_length
    sample = tl.load(samples + run // sample_step % sample_count)
    key = _mixed((sample + seed).to(tl.uint64))
    key = _mixed(key + site.to(tl.uint64))
    column = tl.load(columns + offset, mask=there, other=0) if HAS_COLUMNS else offset
    index = tl.load(rows + run // row_step % row_count) * width + column
    bits = _mixed(index.to(tl.uint64) ^ key) >> 11
    value = tl.load(x + run * run_length + offset, mask=there)
    wide = value if value.dtype == tl.float64 else value.to(tl.float32)
    kept = tl.where(bits >= LEAST, wide / KEPT, 0.0)
    tl.store(out + run * run_length + offset, kept.to(value.dtype), mask=there)


def dropped(
    x: Tensor,
    out: Tensor,
    samples: Tensor,
    sample_dim: int,
    rows: Tensor,
    columns: Tensor | None,
    width: int,
    seed: int,
    site: int,
    p: float,
) -> None:
    """Overwrites `out` with x / (1 - p) where `random.keep_mask` is True, else with 0.

    Args:
        x, out: contiguous [r, b, c], or [b, r, c] by `sample_dim` (1 or 0); r may be several dims.
        samples: [b] int64; mixed with `seed` and `site` as in `random.sample_keys`.
        rows, columns: [r] and [c] int64; an element's number is row x width + column. No columns: 0 ... c - 1.
    """
    run_length = x.shape[-1]
    blocks = triton.cdiv(run_length, _ELEMENTS)
    _dropped[len(rows) * len(samples) * blocks,](
        x,
        out,
        samples,
        rows,
        rows if columns is None else columns,
        len(samples),
        1 if sample_dim == 1 else len(rows),
        len(rows),
        len(samples) if sample_dim == 1 else 1,
        run_length,
        width,
        blocks,
        mixed(seed),
        site,
        HAS_COLUMNS=columns is not None,
        LEAST=int(p * (1 << 53)),
        KEPT=1 - p,
        ELEMENTS=_ELEMENTS,
    )
