"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang, Sennrich 2019) over the hidden dim; weights are whole on every rank.

On CUDA NVIDIA apex's fused kernels take the place of torch's where that package is really there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.layers import fused
from megascratch.parallel.shard import Shard

try:  # the package of that name on the Python index is another one and has no such module
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
    """x / rms(x) * weight where torch has no kernel of its own, on a CPU: in few passes over the memory, or in one."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        if fused.takes(x, weight):
            out, scale = fused.rms_norm(x, weight, epsilon)
        else:
            scale = x.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
            out = (x * scale).mul_(weight)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        if fused.takes(x, weight, grad):
            return *fused.rms_norm_backward(x, weight, scale, grad), None
        both = (grad * x).flatten(0, -2)
        along = (both @ weight).view_as(scale)  # what the scale's own dependence on x takes away
        grad_x = (grad * weight).mul_(scale).addcmul_(x, along * scale * scale * scale, value=-1 / x.shape[-1])
        return grad_x, scale.flatten() @ both, None


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, epsilon: float, *, bias: bool, grad_sum: tuple[str, ...]):
        super().__init__()  # an RMSNorm has no bias whatever is asked of the linear layers
        self.epsilon, self.shape = epsilon, (hidden_size,)
        self.shards = {"weight": Shard((hidden_size,), fill=1.0, grad_sum=grad_sum)}
        self.weight = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        if fused_rms_norm_affine is not None and x.is_cuda:
            return fused_rms_norm_affine(x, self.weight, self.shape, self.epsilon)
        if x.device.type == "cpu" and x.dtype.itemsize >= 4 and not torch.compiler.is_compiling():
            return _RMSNorm.apply(x, self.weight, self.epsilon)
        return F.rms_norm(x, self.shape, self.weight, self.epsilon)


NORMS = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}
