"""A second kind of mixer and of norm, and a pattern in which they alternate with attention: what a new kind of layer
has to bring, on any layout."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from megascratch.config.layers import LayerSpec, NormSpec, RopeSpec, layers_of
from megascratch.config.resolve import ResolvedConfig, ResolvedModel
from megascratch.layers.context import ForwardContext
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.norm import NORMS
from megascratch.layers.recompute import with_recompute
from megascratch.layers.sublayer import Mixer, SublayerSite
from megascratch.model import chunk, flops, table
from megascratch.model.block import MIXERS
from megascratch.parallel.shard import Shard
from tests.support.layout_runs import train_on_rank

DECAY = 0.75


@dataclass(frozen=True)
class RunningMeanSpec:
    kind: ClassVar[str] = "running_mean"
    width: int
    decay: float


@dataclass
class LastMean:
    """The mean after the last token [b, w/tp]."""

    mean: Tensor | None = None


class RunningMean(Mixer):
    """mean[t] = decay * mean[t - 1] + value[t], and a projection of it; the values are split over tp."""

    def __init__(self, spec: RunningMeanSpec, site: SublayerSite):
        super().__init__()
        self.layer = site.layer
        self.decay = spec.decay
        self.recompute_core = False
        widths = {"bias": True, "sequence_parallel": site.sequence_parallel}
        self.value = ColumnParallelLinear(
            site.hidden_size, spec.width, site.tp, std=site.std, **widths
        )
        self.out = RowParallelLinear(
            spec.width, site.hidden_size, site.tp, std=site.output_std, **widths
        )

    def new_cache(self) -> LastMean:
        return LastMean()

    def set_recompute(self, core: bool) -> None:
        self.recompute_core = core

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        values = self.value(x)  # [s, b, w/tp]
        if context.cache is not None:
            last = context.cache[self.layer]
            means = self._means(values, last.mean)
            last.mean = means[-1]
        elif self.recompute_core and self.training:
            means = with_recompute(self._means, values, None)
        else:
            means = self._means(values, None)
        return self.out(means)

    def _means(self, values: Tensor, mean: Tensor | None) -> Tensor:
        means = []
        for value in values:
            mean = value if mean is None else self.decay * mean + value
            means.append(mean)
        return torch.stack(means)


class QuarticNorm(nn.Module):
    """x / (mean of x^4)^(1/4) * weight"""

    def __init__(self, hidden_size: int, epsilon: float, *, bias: bool, grad_sum: tuple[str, ...]):
        super().__init__()
        self.epsilon = epsilon
        self.shards = {"weight": Shard((hidden_size,), role="norm", fill=1.0, grad_sum=grad_sum)}
        self.weight = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.square().square().mean(-1, keepdim=True)
        return x / (mean + self.epsilon).sqrt().sqrt() * self.weight


def pattern(model: ResolvedModel) -> tuple[LayerSpec, ...]:
    """Every second layer is a running mean with the other norm; norms stand before, after, and on both sides in turn;
    every fourth layer has a rope of its own."""
    layers = []
    for number, layer in enumerate(layers_of(model)):
        if number % 2:
            mean = RunningMeanSpec(model.hidden_size // 2, DECAY)
            layer = replace(layer, mixer=mean, norm=NormSpec("QuarticNorm", 1e-5, bias=False))
        elif number % 4:
            layer = replace(layer, mixer=replace(layer.mixer, rope=RopeSpec(4, 50.0)))
        layers.append(replace(layer, placement=("pre", "post", "both")[number % 3]))
    return tuple(layers)


@contextmanager
def other_layers():
    """With the two kinds in their tables, and a model that is `pattern`."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(MIXERS, {"running_mean": RunningMean}))
        stack.enter_context(patch.dict(NORMS, {"QuarticNorm": QuarticNorm}))
        for module in (chunk, flops, table):
            stack.enter_context(patch.object(module, "layers_of", pattern))
        yield


def with_other_layers(config: ResolvedConfig, steps: int, run: Any = train_on_rank) -> Any:
    """On a rank: a run of such a model."""
    with other_layers():
        return run(config, steps)
