"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves convention as in Llama: dims i and i + d/2
turn together.
"""

import torch
from torch import Tensor

from megascratch.layers import fused


def rotary_angles(positions: Tensor, dims: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles; positions [b, s] -> [s, b, 1, dims], where dims i and i + dims/2 have
    one angle, and [s, b, 1, dims/2]."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    frequency = base ** (-torch.arange(0, dims, 2, device=positions.device, dtype=torch.float64) / dims)
    angle = (positions.t().to(torch.float64)[..., None, None] * frequency).to(wide)
    cos = angle.cos().to(dtype)
    return torch.cat((cos, cos), -1), angle.sin().to(dtype)


class _Rotate(torch.autograd.Function):
    """The turn of q and k and the way to attention's layout, in one pass over each; nothing is kept but the angles."""

    @staticmethod
    def forward(ctx, qkv: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int, int]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        s, b, n, d = qkv.shape
        x, out = qkv.permute(1, 2, 0, 3), qkv.new_empty(b, n, s, d)
        turned = heads[0] + heads[1]
        _turn(x[:, :turned], cos, sin, out[:, :turned], back=False)
        out[:, turned:] = x[:, turned:]
        return out.split(heads, 1)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        heads = [grad.shape[1] for grad in grads]
        b, _, s, d = grads[0].shape
        grad_qkv = grads[0].new_empty(s, b, sum(heads), d)
        q, k, v = grad_qkv.permute(1, 2, 0, 3).split(heads, 1)
        _turn(grads[0], cos, sin, q, back=True)
        _turn(grads[1], cos, sin, k, back=True)
        v.copy_(grads[2])
        return grad_qkv, None, None, None


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits [s, b, n, d] into the given numbers of heads of q, k and v, each [b, n, s, d], and turns the first
    cos.shape[-1] dims of each head of q and k; cos and sin as `rotary_angles` gives them."""
    cos, sin = cos.permute(1, 2, 0, 3), sin.permute(1, 2, 0, 3)
    if not torch.compiler.is_compiling():
        return _Rotate.apply(qkv, cos, sin, heads)
    q, k, v = qkv.permute(1, 2, 0, 3).split(heads, 1)  # the compiler fuses this
    return _turned(q, cos, sin), _turned(k, cos, sin), v


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, back: bool) -> None:
    dims, half = cos.shape[-1], sin.shape[-1]
    if fused.takes(x, cos, sin) and x.stride(-1) == 1:
        fused.turn(x, cos, sin, out, back)
    else:
        sign = -1 if back else 1
        torch.mul(x[..., :dims], cos, out=out[..., :dims])
        out[..., :half].addcmul_(x[..., half:dims], sin, value=-sign)
        out[..., half:dims].addcmul_(x[..., :half], sin, value=sign)
    if dims < x.shape[-1]:
        out[..., dims:] = x[..., dims:]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dims, half = cos.shape[-1], sin.shape[-1]
    a, b, rest = x[..., :half], x[..., half:dims], x[..., dims:]
    cos = cos[..., :half]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
