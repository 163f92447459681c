"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang, Sennrich 2019) over the hidden dim; weights are not split over tp.

On CUDA the fused kernels of NVIDIA apex are used if that package is installed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.layers import cpu_kernels
from megascratch.parallel.shard import Shard

try:  # the package named apex on PyPI is a different one, without this module
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine, fused_rms_norm_affine
except ImportError:
    fused_layer_norm_affine = fused_rms_norm_affine = None


class LayerNorm(nn.Module):
    def __init__(self, hidden_size: int, epsilon: float, *, bias: bool, grad_sum: tuple[str, ...]):
        super().__init__()
        self.epsilon, self.shape = epsilon, (hidden_size,)
        self.shards = {"weight": Shard((hidden_size,), fill=1.0, grad_sum=grad_sum)}
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.bias = None
        if bias:
            self.shards["bias"] = Shard((hidden_size,), grad_sum=grad_sum)
            self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        if fused_layer_norm_affine is not None and x.is_cuda and self.bias is not None:
            return fused_layer_norm_affine(x, self.weight, self.bias, self.shape, self.epsilon)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with the kernels of `cpu_kernels`, one pass each way; torch has no fused one for a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, scale = cpu_kernels.rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @cpu_kernels.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        return *cpu_kernels.rms_norm_backward(x, weight, scale, grad), None


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, epsilon: float, *, bias: bool, grad_sum: tuple[str, ...]):
        super().__init__()  # `bias` is ignored: an RMSNorm has none
        self.epsilon, self.shape = epsilon, (hidden_size,)
        self.shards = {"weight": Shard((hidden_size,), fill=1.0, grad_sum=grad_sum)}
        self.weight = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        if fused_rms_norm_affine is not None and x.is_cuda:
            return fused_rms_norm_affine(x, self.weight, self.shape, self.epsilon)
        if not torch.compiler.is_compiling() and cpu_kernels.supports(x, self.weight):
            return _RMSNorm.apply(x, self.weight, self.epsilon)
        return F.rms_norm(x, self.shape, self.weight, self.epsilon)


NORMS = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}
