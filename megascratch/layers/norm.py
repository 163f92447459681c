"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang, Sennrich 2019) over the hidden dim; weights are not split over tp."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megascratch.config.layers import NormSpec
from megascratch.config.registry import look_up
from megascratch.layers.kernels.norms import layer_norm, rms_norm
from megascratch.layers.sublayer import require_shards
from megascratch.parallel.axis import Axis
from megascratch.parallel.shard import Shard


class LayerNorm(nn.Module):
    def __init__(self, hidden_size: int, epsilon: float, *, bias: bool, grad_sum: tuple[str, ...]):
        super().__init__()
        self.epsilon = epsilon
        self.shards = {"weight": Shard((hidden_size,), role="norm", fill=1.0, grad_sum=grad_sum)}
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.bias = None
        if bias:
            self.shards["bias"] = Shard((hidden_size,), role="bias", grad_sum=grad_sum)
            self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.epsilon)


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, epsilon: float, *, bias: bool, grad_sum: tuple[str, ...]):
        super().__init__()  # `bias` is ignored: an RMSNorm has none
        self.epsilon = epsilon
        self.shards = {"weight": Shard((hidden_size,), role="norm", fill=1.0, grad_sum=grad_sum)}
        self.weight = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


NORMS: dict[str, Callable[..., nn.Module]] = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}


def build_norm(spec: NormSpec, hidden_size: int, tp: Axis, sequence_parallel: bool) -> nn.Module:
    """The norm of a spec. Under sequence parallelism each tensor rank sees a part of the sequence, and so computes a
    part of the gradient."""
    grad_sum = ("tp",) if sequence_parallel and tp.size > 1 else ()
    norm = look_up("norm", spec.kind, NORMS)(
        hidden_size, spec.epsilon, bias=spec.bias, grad_sum=grad_sum, **dict(spec.options)
    )
    require_shards(norm, f"the norm {spec.kind}", tp)
    return norm
