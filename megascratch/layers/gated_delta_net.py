"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464), the linear attention of Qwen3-Next and Qwen3.5: a short
convolution, the gated delta rule, and a norm with a gate. Heads are split over tp; each key head serves neighbouring
value heads.

State and convolution begin again with each document. Generation keeps the state and the convolution's last inputs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.config.layers import GatedDeltaNetSpec
from megascratch.config.layout import Layout
from megascratch.layers.context import ForwardContext
from megascratch.layers.kernels.delta_rule import DeltaInputs, chunked, short_convolution
from megascratch.layers.kernels.norms import rms_norm
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.recompute import with_recompute
from megascratch.layers.sublayer import Mixer, SublayerSite
from megascratch.parallel.shard import Cut, Part, Shard

LOG_DECAY = (
    1.5  # mean and deviation of the logarithms that transformers draws: of numbers from 0.01 to 16
)
LOG_DECAY_STD = 1.0


@dataclass
class DeltaCache:
    """What is left of the previous tokens; None before the first."""

    inputs: Tensor | None = None
    """[k - 1, b, c] of the convolution."""
    state: Tensor | None = None
    """[b, n, d, e]"""


class GatedDeltaNet(Mixer):
    convolution: nn.Parameter  # [channels, kernel]
    log_decay: nn.Parameter  # [value heads]
    step_bias: nn.Parameter  # [value heads]
    norm: nn.Parameter  # [value width]

    def __init__(self, spec: GatedDeltaNetSpec, site: SublayerSite):
        super().__init__()
        tp = site.tp
        self.layer = site.layer
        self.spec = spec
        self.keys = spec.key_heads // tp.size
        self.values = spec.value_heads // tp.size
        self.recompute_core = False
        key = Part(spec.key_heads * spec.key_width, spec.key_heads)
        value = Part(spec.value_heads * spec.value_width, spec.value_heads)
        number = Part(spec.value_heads, spec.value_heads)
        parts = (key, key, value, value, number, number)  # q, k, v, gate, beta, decay
        self.inputs = ColumnParallelLinear(
            site.hidden_size,
            sum(part.size for part in parts),
            tp,
            parts=parts,
            bias=False,
            std=site.std,
            sequence_parallel=site.sequence_parallel,
        )
        channels = (key, key, value)
        cut = Cut("tp", 0, channels)
        per_head = Cut("tp", 0, (number,))
        rows = sum(part.size for part in channels)
        self.shards = {
            "convolution": Shard((rows, spec.kernel), (cut,), std=(3 * spec.kernel) ** -0.5),
            "log_decay": Shard(
                (spec.value_heads,), (per_head,), role="scalar", fill=LOG_DECAY, std=LOG_DECAY_STD
            ),
            "step_bias": Shard((spec.value_heads,), (per_head,), role="bias", fill=1.0),
            # each tensor rank sees its heads only
            "norm": Shard(
                (spec.value_width,), role="norm", fill=1.0, grad_sum=("tp",) if tp.size > 1 else ()
            ),
        }
        layout = Layout(tp=tp.size)
        for name, shard in self.shards.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shard.local_shape(layout))))
        self.proj = RowParallelLinear(
            spec.value_heads * spec.value_width,
            site.hidden_size,
            tp,
            bias=False,
            std=site.output_std,
            sequence_parallel=site.sequence_parallel,
        )

    def new_cache(self) -> DeltaCache:
        return DeltaCache()

    def set_recompute(self, core: bool) -> None:
        self.recompute_core = core

    def flops(self, seq_length: int) -> int:
        """With the products of each token with the state: what its key finds, what it writes, what its query reads."""
        state = self.values * self.spec.key_width * self.spec.value_width
        return super().flops(seq_length) + 6 * state

    def forward(
        self, x: Tensor, context: ForwardContext
    ) -> Tensor:  # [s or s/tp, b, h] -> the same
        spec = self.spec
        widths = [self.keys * spec.key_width] * 2 + [self.values * spec.value_width] * 2
        y = self.inputs(x)  # [s, b, c + ...]
        mixed, gate, beta, step = y.split((sum(widths[:3]), widths[3], self.values, self.values), 2)
        cache = None if context.cache is None else context.cache[self.layer]
        if cache is not None:
            mixed = mixed if cache.inputs is None else torch.cat((cache.inputs, mixed))
            cache.inputs = mixed[max(0, mixed.shape[0] - spec.kernel + 1) :]
        if self.recompute_core and self.training:
            out = with_recompute(self._core, mixed, beta, step, context, None)
        else:
            out = self._core(mixed, beta, step, context, cache)
        out = rms_norm(out, self.norm, spec.epsilon)  # [s, b, n, e]
        wide = torch.promote_types(gate.dtype, torch.float32)
        out = (out * F.silu(gate.view(out.shape).to(wide))).to(x.dtype)
        return self.proj(out.flatten(2))

    def _core(
        self,
        mixed: Tensor,
        beta: Tensor,
        step: Tensor,
        context: ForwardContext,
        cache: DeltaCache | None,
    ) -> Tensor:
        """Convolution and delta rule: [t + s, b, c], [s, b, n] and [s, b, n] -> [s, b, n, e]."""
        spec = self.spec
        positions = context.visible.queries
        starts = context.visible.starts
        mixed = short_convolution(mixed, self.convolution, positions, starts)
        wide = torch.promote_types(mixed.dtype, torch.float32)
        widths = [self.keys * spec.key_width] * 2 + [self.values * spec.value_width]
        q, k, v = (
            _heads(part) for part in _split(mixed, widths, (self.keys, self.keys, self.values))
        )
        times = self.values // self.keys
        q = _unit(q.to(wide)).repeat_interleave(times, 1) * spec.key_width**-0.5
        k = _unit(k.to(wide)).repeat_interleave(times, 1)
        decay = -self.log_decay.to(wide).exp() * F.softplus(
            step.to(wide) + self.step_bias.to(wide)
        )  # [s, b, n]
        inputs = DeltaInputs(
            q, k, v.to(wide), decay.permute(1, 2, 0), beta.to(wide).sigmoid().permute(1, 2, 0)
        )
        state = None if cache is None else cache.state
        if state is None:
            state = q.new_zeros(*q.shape[:2], spec.key_width, spec.value_width)
        out, state = chunked(inputs, positions, starts, state)
        if cache is not None:
            cache.state = state
        return out.permute(2, 0, 1, 3).to(mixed.dtype)


def _split(x: Tensor, widths: list[int], heads: tuple[int, ...]) -> list[Tensor]:
    """x [s, b, c] -> [s, b, n, d] for each width."""
    parts = x.split(widths, 2)
    return [part.unflatten(2, (n, -1)) for part, n in zip(parts, heads, strict=True)]


def _heads(x: Tensor) -> Tensor:
    return x.permute(1, 2, 0, 3)  # [s, b, n, d] -> [b, n, s, d]


def _unit(x: Tensor) -> Tensor:
    """x / |x|, as in the library of the paper."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
