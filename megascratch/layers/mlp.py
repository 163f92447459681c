"""The MLP of a block, with GELU, squared ReLU (So et al. 2021) or SwiGLU (Shazeer 2020); its width is split over tp."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.config.settings import ModelConfig
from megascratch.layers import cpu_kernels
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Part


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


class _SwiGLU(torch.autograd.Function):
    """SwiGLU that keeps only its input; backward writes both halves of the gradient directly into one tensor."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if cpu_kernels.supports(x):
            return cpu_kernels.swiglu(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @cpu_kernels.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if cpu_kernels.supports(x, grad):
            return cpu_kernels.swiglu_backward(x, grad)
        gate, up = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, -1)
        torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad)
        torch.mul(grad, up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_x


def swiglu(x: Tensor) -> Tensor:
    """[..., gate | up] -> silu(gate) * up."""
    if not torch.compiler.is_compiling():
        return _SwiGLU.apply(x)
    gate, up = x.chunk(2, -1)  # the compiler fuses this
    return F.silu(gate) * up


class _GELU(torch.autograd.Function):
    """torch's own forward, which is fast, and a backward with the kernels of `cpu_kernels`."""

    @staticmethod
    def forward(ctx, x: Tensor, by_tanh: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.by_tanh = by_tanh
        return _gelu(x, by_tanh)

    @staticmethod
    @cpu_kernels.once_differentiable
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return cpu_kernels.gelu_backward(x, grad, ctx.by_tanh), None


def gelu(x: Tensor, by_tanh: bool = False) -> Tensor:
    """GELU, x times the normal CDF of x (Hendrycks, Gimpel 2016), or OpenAI's approximation by tanh."""
    use_kernel = not torch.compiler.is_compiling() and cpu_kernels.supports(x)
    return _GELU.apply(x, by_tanh) if use_kernel else _gelu(x, by_tanh)


def _gelu(x: Tensor, by_tanh: bool) -> Tensor:
    return F.gelu(x, approximate="tanh" if by_tanh else "none")


def activation(model: ModelConfig) -> Callable[[Tensor], Tensor]:
    if model.swiglu:
        return swiglu
    if model.squared_relu:
        return squared_relu
    return partial(gelu, by_tanh=model.openai_gelu)


class MLP(nn.Module):
    def __init__(self, model: ModelConfig, tp: Axis, sequence_parallel: bool, output_std: float):
        super().__init__()
        width = model.ffn_hidden_size
        assert width is not None
        parts = (Part(width, width),) * (2 if model.swiglu else 1)
        self.fc1 = ColumnParallelLinear(
            model.hidden_size,
            width * len(parts),
            tp,
            parts=parts,
            bias=model.add_bias_linear,
            std=model.init_method_std,
            sequence_parallel=sequence_parallel,
        )
        self.fc2 = RowParallelLinear(
            width,
            model.hidden_size,
            tp,
            bias=model.add_bias_linear,
            std=output_std,
            sequence_parallel=sequence_parallel,
        )
        self.activation = activation(model)

    def forward(self, x: Tensor) -> Tensor:  # [s or s/tp, b, h] -> the same
        return self.fc2(self.activation(self.fc1(x)))
