"""LayerNorm and RMSNorm over the last dim; on CUDA by the fused kernels of NVIDIA apex if that package is installed."""

import torch
import torch.nn.functional as F
from torch import Tensor

from megascratch.layers.kernels import cpu
from megascratch.layers.kernels.choice import are_ordinary
from megascratch.parallel.device_kind import device_kind, is_imitated, note_launch

try:  # the package named apex on PyPI is a different one, without this module
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine, fused_rms_norm_affine
except ImportError:
    fused_layer_norm_affine = fused_rms_norm_affine = None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """(x - mean) / std * weight + bias; weight and bias [h], x [..., h]."""
    use_apex = fused_layer_norm_affine is not None and x.is_cuda and are_ordinary(x, weight)
    if use_apex and bias is not None:
        return fused_layer_norm_affine(x, weight, bias, weight.shape, epsilon)
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight; weight [h], x [..., h]."""
    if fused_rms_norm_affine is not None and x.is_cuda and are_ordinary(x, weight):
        return fused_rms_norm_affine(x, weight, weight.shape, epsilon)
    if cpu.supports(x, weight):
        return _RMSNorm.apply(x, weight, epsilon)
    if is_imitated(x, weight) and device_kind(x) == "cuda":
        return _OneKernel.apply(x, weight)
    return F.rms_norm(x, weight.shape, weight, epsilon)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with the kernels of `cpu`, one pass each way; torch has no fused one for a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, scale = cpu.rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        if cpu.supports(grad):
            return *cpu.rms_norm_backward(x, weight, scale, grad), None
        normed = x * scale
        pull = grad * weight
        away = normed * (pull * normed).mean(-1, keepdim=True)  # the scale's own dependence on x
        grad_weight = (grad * normed).reshape(-1, len(weight)).sum(0)
        return scale * (pull - away), grad_weight, None


class _OneKernel(torch.autograd.Function):
    """RMSNorm in a dry run of CUDA, where torch has one kernel each way, while on the meta device it takes plain steps.
    It keeps 1 / rms(x) in fp32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = torch.empty(*x.shape[:-1], 1, dtype=wide, device=x.device)
        ctx.save_for_backward(x, weight, scale)
        note_launch("rms_norm")
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, _ = ctx.saved_tensors
        note_launch("rms_norm_backward")
        return torch.empty_like(x), torch.empty_like(weight)
