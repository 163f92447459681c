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
    """(x - mean) / std * factor + bias.

    Args:
        minus_one: the weight is the factor minus one (`--apply-layernorm-1p` of Megatron-LM). In half precision such a
            norm computes in fp32, because the sum would lose what the weight has kept.
    """

    def __init__(
        self,
        hidden_size: int,
        epsilon: float,
        *,
        bias: bool,
        grad_sum: tuple[str, ...],
        minus_one: bool = False,
    ):
        super().__init__()
        self.epsilon = epsilon
        self.minus_one = minus_one
        self.shards = {"weight": _weight_shard(hidden_size, grad_sum, minus_one)}
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.bias = None
        if bias:
            self.shards["bias"] = Shard((hidden_size,), role="bias", grad_sum=grad_sum)
            self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        if not self.minus_one:
            return layer_norm(x, self.weight, self.bias, self.epsilon)
        wide = _wide_dtype(x)
        bias = None if self.bias is None else self.bias.to(wide)
        return layer_norm(x.to(wide), self.weight.to(wide) + 1, bias, self.epsilon).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * factor; `bias` is ignored: an RMSNorm has none. See `LayerNorm` for `minus_one`."""

    def __init__(
        self,
        hidden_size: int,
        epsilon: float,
        *,
        bias: bool,
        grad_sum: tuple[str, ...],
        minus_one: bool = False,
    ):
        super().__init__()
        self.epsilon = epsilon
        self.minus_one = minus_one
        self.shards = {"weight": _weight_shard(hidden_size, grad_sum, minus_one)}
        self.weight = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        if not self.minus_one:
            return rms_norm(x, self.weight, self.epsilon)
        wide = _wide_dtype(x)
        return rms_norm(x.to(wide), self.weight.to(wide) + 1, self.epsilon).to(x.dtype)


def _weight_shard(hidden_size: int, grad_sum: tuple[str, ...], minus_one: bool) -> Shard:
    """The weight of a norm, whose factor is 1 at first."""
    fill = 0.0 if minus_one else 1.0
    return Shard((hidden_size,), role="norm", fill=fill, grad_sum=grad_sum)


def _wide_dtype(x: Tensor) -> torch.dtype:
    """The type in which a factor near one keeps the precision of its weight: fp32, or that of x if it is wider."""
    return torch.promote_types(x.dtype, torch.float32)


NORMS: dict[str, Callable[..., nn.Module]] = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}


def build_norm(spec: NormSpec, hidden_size: int, tp: Axis, sequence_parallel: bool) -> nn.Module:
    """The norm of a spec. Under sequence parallelism each tensor rank sees a part of the sequence, and so computes a
    part of the gradient."""
    grad_sum = ("tp",) if sequence_parallel and tp.size > 1 else ()
    options = dict(spec.options)
    if spec.minus_one:
        options["minus_one"] = True
    norm = look_up("norm", spec.kind, NORMS)(
        hidden_size, spec.epsilon, bias=spec.bias, grad_sum=grad_sum, **options
    )
    require_shards(norm, f"the norm {spec.kind}", tp)
    return norm
