"""Splits fused qkv into heads and applies rotary position embedding on the way, in one pass over q and k.

Uses the convention of Llama: dims i and i + d/2 rotate together.
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
    def forward(ctx, qkv: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        s, b, n, d = qkv.shape
        x = _per_head(qkv)
        out = qkv.new_empty(n, b, s, d).transpose(0, 1)  # [b, n, s, d]
        turned = heads[0] + heads[1]  # q and k
        _turn(x[:, :turned], cos, sin, out[:, :turned], back=False)
        out[:, turned:] = x[:, turned:]
        return out.split(heads, 1)

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        grad_qkv, (q, k, v) = _grad_qkv(grads)
        _turn(grads[0], cos, sin, q, back=True)
        _turn(grads[1], cos, sin, k, back=True)
        v.copy_(grads[2])
        return grad_qkv, None, None, None


def _grad_qkv(grads: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Allocates the gradient of qkv [s, b, n, d]; returns it and its views for q, k and v [b, n, s, d]."""
    heads = [grad.shape[1] for grad in grads]
    b, _, s, d = grads[0].shape
    grad_qkv = grads[0].new_empty(s, b, sum(heads), d)
    return grad_qkv, _per_head(grad_qkv).split(heads, 1)


def _per_head(x: Tensor) -> Tensor:
    return x.permute(1, 2, 0, 3)  # [s, b, n, d] -> [b, n, s, d]


def split_heads(
    qkv: Tensor, heads: Heads, angles: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits [s, b, n, d] into q, k and v with the given numbers of heads, each [b, n, s, d]. With `angles`, the result
    of `rotary_angles`, rotates the first cos.shape[-1] dims of each head of q and k."""
    if only_formulas():
        q, k, v = _per_head(qkv).split(heads, 1)
        if angles is not None:
            q = _turned(q, *angles)
            k = _turned(k, *angles)
        return q, k, v
    if angles is None:
        return _Split.apply(qkv, heads)
    cos, sin = angles
    return _Rotate.apply(qkv, _per_head(cos), _per_head(sin), heads)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, back: bool) -> None:
    """Rotates the first cos.shape[-1] dims of x [b, n, s, d] into `out` and copies the others."""
    dims = cos.shape[-1]
    half = sin.shape[-1]
    if cpu.supports(x, cos, sin) and x.stride(-1) == 1:
        cpu.apply_rotary(x, cos, sin, out, back)
    else:
        sign = -1 if back else 1
        torch.mul(x[..., :dims], cos, out=out[..., :dims])
        out[..., :half].addcmul_(x[..., half:dims], sin, value=-sign)
        out[..., half:dims].addcmul_(x[..., :half], sin, value=sign)
    if dims < x.shape[-1]:
        out[..., dims:] = x[..., dims:]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `_turn`, without writing in place; cos and sin as `rotary_angles` returns them."""
    dims = cos.shape[-1]
    half = sin.shape[-1]
    cos = _per_head(cos)[..., :half]  # [b, 1, s, dims/2]
    sin = _per_head(sin)
    a = x[..., :half]
    b = x[..., half:dims]
    rest = x[..., dims:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
