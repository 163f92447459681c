"""Attention by torch's fused kernels for CPU and CUDA, called for each piece of what queries see
(`attention_pieces.py`).

The kernels return the log-sum-exp of each row, and take one of more keys in backward. Of a row that sees nothing that
of the CPU says 0; here it is -inf, as it must be to be merged. That of CUDA takes no mask: the small dense pieces at a
window's edge run there in plain steps.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from megascratch.layers.attention_pieces import Piece, QueryRun
from megascratch.layers.kernels import plain_attention
from megascratch.layers.kernels.plain_attention import Scores, merge
from megascratch.layers.visible import Visible
from megascratch.parallel.device_kind import device_kind

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_cuda_forward = torch.ops.aten._scaled_dot_product_flash_attention
_cuda_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward


def supports(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> bool:
    """Whether a kernel computes these scores: without soft cap and dropout, and with values as wide as keys."""
    if scores.softcap is not None or scores.dropout is not None or q.shape[3] != v.shape[3]:
        return False
    if device_kind(q) == "cpu":
        return True
    if device_kind(q) != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    fits = q.shape[3] % 8 == 0 and q.shape[3] <= 256
    return fits and (q.is_meta or _cuda_kernel_matches(q.device, q.dtype))


def forward(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores, runs: list[list[QueryRun]]
) -> tuple[Tensor, Tensor]:
    """See `plain_attention.attend_forward`."""
    b, n, s, d = q.shape
    out = q.new_empty(s, b, n, d).permute(1, 2, 0, 3)  # as the next layer reads it
    lse = torch.empty(b, n, s, dtype=_type_of_lse(q), device=q.device)
    for samples, run in _each(runs):
        here = (samples, slice(None), run.queries)
        if not run.pieces:
            out[here] = 0
            lse[here] = -torch.inf
            continue
        found = _piece(q, k, v, visible, scores, samples, run.pieces[0])
        for piece in run.pieces[1:]:
            found = merge(*found, *_piece(q, k, v, visible, scores, samples, piece))
        out[here], lse[here] = found
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible: Visible,
    scores: Scores,
    runs: list[list[QueryRun]],
) -> tuple[Tensor, Tensor, Tensor]:
    """See `plain_attention.attend_backward`."""
    grad_q = torch.zeros_like(q)
    wide = torch.promote_types(q.dtype, torch.float32)
    grad_k = torch.zeros(k.shape, dtype=wide, device=k.device)
    grad_v = torch.zeros(v.shape, dtype=wide, device=v.device)
    for samples, run in _each(runs):
        rows = (samples, slice(None), run.queries)
        for piece in run.pieces:
            columns = (samples, slice(None), piece.keys)
            block = (grad[rows], q[rows], k[columns], v[columns], out[rows], lse[rows])
            parts = _backward_of_piece(*block, visible, scores, samples, piece)
            grad_q[rows] += parts[0]
            grad_k[columns] += _summed(parts[1], k)
            grad_v[columns] += _summed(parts[2], v)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _each(runs: list[list[QueryRun]]) -> Iterator[tuple[slice, QueryRun]]:
    """Each run with its samples."""
    for number, of_sample in enumerate(runs):
        samples = slice(None) if len(runs) == 1 else slice(number, number + 1)
        for run in of_sample:
            yield samples, run


def _piece(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    scores: Scores,
    samples: slice,
    piece: Piece,
) -> tuple[Tensor, Tensor]:
    rows = (samples, slice(None), piece.queries)
    columns = (samples, slice(None), piece.keys)
    q, k, v = q[rows], k[columns], v[columns]
    causal = piece.kind == "causal"
    if device_kind(q) == "cuda":
        if piece.kind == "dense":
            seen = visible.part(piece.queries, piece.keys, samples)
            return plain_attention.attend_forward(q, k, v, seen, scores)
        found = _cuda_forward(q, k, v, 0.0, causal, scale=scores.scale)
        return found[0], found[1]
    mask = _mask(q, visible, samples, piece)
    out, lse = _cpu_forward(q, *_keys(q, k, v), 0.0, causal, attn_mask=mask, scale=scores.scale)
    if mask is not None:
        nothing = (mask == -torch.inf).all(-1)  # [b or 1, 1, q]
        lse = lse.masked_fill(nothing, -torch.inf)
    return out, lse


def _backward_of_piece(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible: Visible,
    scores: Scores,
    samples: slice,
    piece: Piece,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the queries, keys and values of a piece; k and v may have several of them for each head."""
    causal = piece.kind == "causal"
    if device_kind(q) == "cuda":
        if piece.kind == "dense":
            seen = visible.part(piece.queries, piece.keys, samples)
            return plain_attention.attend_backward(grad, q, k, v, out, lse, seen, scores)
        lengths = (q.shape[2], k.shape[2])
        none = torch.empty(0, dtype=torch.int32, device=q.device)
        # of the random numbers of a dropout that is off
        seeds = torch.zeros(2, dtype=torch.int64, device=q.device)
        return _cuda_backward(
            grad, q, k, v, out, lse.contiguous(), none, none, *lengths, 0.0, causal, seeds, none,
            scale=scores.scale,
        )  # fmt: skip
    return _cpu_backward(
        grad,
        q,
        *_keys(q, k, v),
        out,
        lse,
        0.0,
        causal,
        attn_mask=_mask(q, visible, samples, piece),
        scale=scores.scale,
    )


def _mask(q: Tensor, visible: Visible, samples: slice, piece: Piece) -> Tensor | None:
    """What is added to the scores of a dense piece."""
    if piece.kind != "dense":
        return None
    seen = visible.part(piece.queries, piece.keys, samples).dense
    return torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)


def _keys(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as the kernel wants them: newer ones take a head for several query heads."""
    times = q.shape[1] // k.shape[1]
    if times == 1 or TAKES_GROUPS:
        return k, v
    return k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)


def _summed(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the heads of x, from that of the heads that the kernel had."""
    if grad.shape[1] == x.shape[1]:
        return grad
    return grad.unflatten(1, (x.shape[1], -1)).sum(2)


def _type_of_lse(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _takes_groups() -> bool:
    """Whether the kernel and its backward take fewer key/value heads than query heads."""
    q = torch.arange(48.0, device="cpu").view(1, 4, 3, 4).sin()
    k = torch.arange(24.0, device="cpu").view(1, 2, 3, 4).cos()
    try:
        out, lse = _cpu_forward(q, k, k, 0.0, True)
        grads = _cpu_backward(out, q, k, k, out, lse, 0.0, True)
        both = k.repeat_interleave(2, 1)
        expected, lse = _cpu_forward(q, both, both, 0.0, True)
        repeated = _cpu_backward(expected, q, both, both, expected, lse, 0.0, True)
    except RuntimeError:
        return False
    if grads[1].shape != k.shape or not torch.allclose(out, expected):
        return False
    return torch.allclose(grads[1], repeated[1].unflatten(1, (2, 2)).sum(2), atol=1e-5)


TAKES_GROUPS = _takes_groups()


@lru_cache(maxsize=8)
@torch.inference_mode(False)
@torch.no_grad()
def _cuda_kernel_matches(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel runs on the device as it is called here, with a sum of more keys than it sees, and matches the
    plain steps; if not, those are used."""
    places = torch.arange(64, device=device)
    q = torch.linspace(-3, 3, 4 * 64 * 32, device=device).sin().view(1, 4, 64, 32).to(dtype)
    k = q[:, :2].flip(2).contiguous()
    visible = Visible(places, places, None, in_order=True)
    scores = Scores(0.2)
    runs = visible.runs
    assert runs is not None
    try:
        out, lse = forward(q, k, k, visible, scores, runs)
        grads = backward(q, q, k, k, out, lse + 0.5, visible, scores, runs)
    except RuntimeError:
        return False
    plain, plain_lse = plain_attention.attend_forward(q, k, k, visible, scores)
    expected = plain_attention.attend_backward(q, q, k, k, out, plain_lse + 0.5, visible, scores)
    pairs = zip((out, lse, *grads), (plain, plain_lse, *expected), strict=True)
    return all(torch.allclose(a.float(), b.float(), 3e-2, 3e-2) for a, b in pairs)
