"""Splits fused qkv into heads and applies rotary position embedding on the way, in one pass over q and k.

Two dims rotate together: i and i + d/2 as in Llama, or 2i and 2i + 1 (interleaved).
"""

import torch
from torch import Tensor

from megascratch.layers.kernels import cpu
from megascratch.layers.kernels.choice import only_formulas

Heads = tuple[int, int, int]  # of q, k and v


class _Split(torch.autograd.Function):
    """Splits qkv into views of q, k and v; backward writes their gradients directly into that of qkv."""

    @staticmethod
    def forward(ctx, qkv: Tensor, heads: Heads) -> tuple[Tensor, ...]:
        return _per_head(qkv).split(heads, 1)

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, *grads: Tensor):
        grad_qkv, views = _grad_qkv(grads)
        for view, grad in zip(views, grads, strict=True):
            view.copy_(grad)
        return grad_qkv, None


class _Rotate(torch.autograd.Function):
    """Rotates q and k and changes to the layout of attention in one pass over each; keeps only the angles."""

    @staticmethod
    def forward(
        ctx, qkv: Tensor, cos: Tensor, sin: Tensor, heads: Heads, interleaved: bool
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        s, b, n, d = qkv.shape
        x = _per_head(qkv)
        out = qkv.new_empty(n, b, s, d).transpose(0, 1)  # [b, n, s, d]
        turned = heads[0] + heads[1]  # q and k
        _turn(x[:, :turned], cos, sin, out[:, :turned], interleaved, back=False)
        out[:, turned:] = x[:, turned:]
        return out.split(heads, 1)

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        grad_qkv, (q, k, v) = _grad_qkv(grads)
        _turn(grads[0], cos, sin, q, ctx.interleaved, back=True)
        _turn(grads[1], cos, sin, k, ctx.interleaved, back=True)
        v.copy_(grads[2])
        return grad_qkv, None, None, None, None


class _RotateHeads(torch.autograd.Function):
    """Rotates heads and changes to the layout of attention in one pass; keeps only the angles."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        s, b, n, d = x.shape
        out = x.new_empty(n, b, s, d).transpose(0, 1)  # [b, n, s, d]
        _turn(_per_head(x), cos, sin, out, interleaved, back=False)
        return out

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.saved_tensors
        b, n, s, d = grad.shape
        grad_x = grad.new_empty(s, b, n, d)
        _turn(grad, cos, sin, _per_head(grad_x), ctx.interleaved, back=True)
        return grad_x, None, None, None


def rotate_heads(
    x: Tensor, angles: tuple[Tensor, Tensor] | None, interleaved: bool = False
) -> Tensor:
    """Heads [s, b, n, d] in the layout of attention [b, n, s, d], rotated as by `split_heads` if there are angles."""
    if angles is None:
        return _per_head(x)
    cos, sin = angles
    if only_formulas():
        return _turned(_per_head(x), cos, sin, interleaved)
    return _RotateHeads.apply(x, _per_head(cos), _per_head(sin), interleaved)


def _grad_qkv(grads: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Allocates the gradient of qkv [s, b, n, d]; returns it and its views for q, k and v [b, n, s, d]."""
    heads = [grad.shape[1] for grad in grads]
    b, _, s, d = grads[0].shape
    grad_qkv = grads[0].new_empty(s, b, sum(heads), d)
    return grad_qkv, _per_head(grad_qkv).split(heads, 1)


def _per_head(x: Tensor) -> Tensor:
    return x.permute(1, 2, 0, 3)  # [s, b, n, d] -> [b, n, s, d]


def split_heads(
    qkv: Tensor,
    heads: Heads,
    angles: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits [s, b, n, d] into q, k and v with the given numbers of heads, each [b, n, s, d]. With `angles`, the result
    of `rotary_angles` for an interleaved rope or another one, rotates the first cos.shape[-1] dims of each head of q
    and k."""
    if only_formulas():
        q, k, v = _per_head(qkv).split(heads, 1)
        if angles is not None:
            q = _turned(q, *angles, interleaved)
            k = _turned(k, *angles, interleaved)
        return q, k, v
    if angles is None:
        return _Split.apply(qkv, heads)
    cos, sin = angles
    return _Rotate.apply(qkv, _per_head(cos), _per_head(sin), heads, interleaved)


def _pairs(dims: int, interleaved: bool) -> tuple[slice, slice]:
    """Which dims are first and which are second of the pairs that rotate together."""
    if interleaved:
        return slice(0, dims, 2), slice(1, dims, 2)
    return slice(0, dims // 2), slice(dims // 2, dims)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, interleaved: bool, back: bool) -> None:
    """Rotates the first cos.shape[-1] dims of x [b, n, s, d] into `out` and copies the others."""
    dims = cos.shape[-1]
    if not interleaved and cpu.supports(x, cos, sin) and x.stride(-1) == 1:
        cpu.apply_rotary(x, cos, sin, out, back)
    else:
        first, second = _pairs(dims, interleaved)
        sign = -1 if back else 1
        torch.mul(x[..., :dims], cos, out=out[..., :dims])
        out[..., first].addcmul_(x[..., second], sin, value=-sign)
        out[..., second].addcmul_(x[..., first], sin, value=sign)
    if dims < x.shape[-1]:
        out[..., dims:] = x[..., dims:]


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """As `_turn`, without writing in place; cos and sin as `rotary_angles` returns them."""
    dims = cos.shape[-1]
    first, second = _pairs(dims, interleaved)
    cos = _per_head(cos)[..., first]  # [b, 1, s, dims/2]
    sin = _per_head(sin)
    a = x[..., first]
    b = x[..., second]
    turned = (a * cos - b * sin, b * cos + a * sin)
    rest = x[..., dims:]
    if interleaved:
        return torch.cat((torch.stack(turned, -1).flatten(-2), rest), -1)
    return torch.cat((*turned, rest), -1)
