"""SwiGLU and other gated activations (Shazeer 2020, arXiv 2002.05202), and GELU (Hendrycks, Gimpel 2016)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megascratch.layers.kernels import cpu
from megascratch.layers.kernels.choice import only_formulas


class _SwiGLU(torch.autograd.Function):
    """SwiGLU that keeps only its input; backward writes both halves of the gradient directly into one tensor."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if cpu.supports(x):
            return cpu.swiglu(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if cpu.supports(x, grad):
            return cpu.swiglu_backward(x, grad)
        gate, up = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, -1)
        torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad)
        torch.mul(grad, up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_x


def swiglu(x: Tensor) -> Tensor:
    """[..., gate | up] -> silu(gate) * up."""
    if only_formulas():
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up
    return _SwiGLU.apply(x)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), an approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def gated(
    x: Tensor, function: Callable[[Tensor], Tensor], clamp: float | None, offset: float
) -> Tensor:
    """[..., gate | up] -> function(gate) * (up + offset).

    Args:
        clamp: the gate is at most this, and up within plus or minus this (gpt-oss); None: no limit.
    """
    if only_formulas():
        return _gated(x, function, clamp, offset)
    return _Gated.apply(x, function, clamp, offset)


def _gated(
    x: Tensor, function: Callable[[Tensor], Tensor], clamp: float | None, offset: float
) -> Tensor:
    gate, up = x.chunk(2, -1)
    if clamp is not None:
        gate = gate.clamp(max=clamp)
        up = up.clamp(-clamp, clamp)
    return function(gate) * (up + offset)


class _Gated(torch.autograd.Function):
    """Keeps only its input; backward computes the steps again."""

    @staticmethod
    def forward(ctx, x: Tensor, *how) -> Tensor:
        ctx.save_for_backward(x)
        ctx.how = how
        return _gated(x, *how)

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            y = _gated(again, *ctx.how)
            (grad_x,) = torch.autograd.grad(y, again, grad)
        return grad_x, None, None, None


_NAMES = {False: "none", True: "tanh"}  # torch's, of GELU and its approximation


class _GELU(torch.autograd.Function):
    """torch's own forward, which is fast, and a backward with the kernels of `cpu`."""

    @staticmethod
    def forward(ctx, x: Tensor, by_tanh: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.by_tanh = by_tanh
        return F.gelu(x, approximate=_NAMES[by_tanh])

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        if cpu.supports(grad):
            return cpu.gelu_backward(x, grad, ctx.by_tanh), None
        return torch.ops.aten.gelu_backward(grad, x, approximate=_NAMES[ctx.by_tanh]), None


def gelu(x: Tensor, by_tanh: bool = False) -> Tensor:
    """GELU, x times the normal CDF of x (Hendrycks, Gimpel 2016), or OpenAI's approximation by tanh."""
    if cpu.supports(x):
        return _GELU.apply(x, by_tanh)
    return F.gelu(x, approximate=_NAMES[by_tanh])
