"""Self-attention with a fused qkv projection, grouped-query attention and heads split over tp.

With more tp ranks than key/value heads, neighbouring ranks hold replicas of the same k and v rows (`Cut.parts`).
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from megascratch.config.layers import AttentionSpec
from megascratch.layers.context import ForwardContext
from megascratch.layers.context_parallel.core import CORES
from megascratch.layers.dropout import AttentionDropout
from megascratch.layers.kernels.attention import Scores, attend
from megascratch.layers.kernels.rotary import rotate_heads, split_heads
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.norm import build_norm
from megascratch.layers.offload import HostMemory
from megascratch.layers.recompute import with_recompute
from megascratch.layers.sublayer import Mixer, SublayerSite
from megascratch.layers.visible import Visible
from megascratch.layers.wide_norm import WideNorm
from megascratch.parallel.axis import Axis
from megascratch.parallel.shard import Cut, Part, Shard


@dataclass
class KVCache:
    """The keys and values of the previous tokens of one layer; each [b, kv heads, s, d], None before the first.

    With a window, only those that the next token may see: one less than the window, which counts that token, too.
    """

    window: int | None = None
    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends to the keys and values, and returns all that the new tokens may see."""
        if self.keys is not None and self.values is not None:
            k = torch.cat((self.keys, k), 2)
            v = torch.cat((self.values, v), 2)
        self.keys = self._kept(k)
        self.values = self._kept(v)
        return k, v

    def _kept(self, x: Tensor) -> Tensor:
        if self.window is None or x.shape[2] < self.window:
            return x
        return x[:, :, x.shape[2] - self.window + 1 :].clone()  # a view would hold all of x


class Attention(Mixer):
    def __init__(self, spec: AttentionSpec, site: SublayerSite):
        super().__init__()
        tp = site.tp
        width = spec.head_width
        self.layer = site.layer
        self.width = width
        self.heads = spec.heads // tp.size
        self.groups = max(1, spec.groups // tp.size)
        self.rope = spec.rope
        self.window = spec.window
        self.cp = site.cp
        self.scale = spec.scale or width**-0.5
        self.softcap = spec.softcap
        self.ropes = () if spec.rope is None else (spec.rope,)
        self.recompute_core = False
        self.host: HostMemory | None = None
        self.has_gate = spec.output_gate
        q_part = Part(spec.heads * width, spec.heads)
        kv_part = Part(spec.groups * width, spec.groups)
        parts: tuple[Part, ...] = (q_part, kv_part, kv_part)
        if self.has_gate:
            parts += (q_part,)
        self.qkv = ColumnParallelLinear(
            site.hidden_size,
            sum(part.size for part in parts),
            tp,
            parts=parts,
            bias=spec.qkv_bias,
            std=site.std,
            sequence_parallel=site.sequence_parallel,
        )
        self.q_norm = _qk_norm(spec, spec.heads, tp)
        self.k_norm = _qk_norm(spec, spec.groups, tp)
        self.shards: dict[str, Shard] = {}
        self.sinks = None
        self.has_fixed_sink = spec.sinks == "off-by-one"
        if spec.sinks == "learnable":
            cut = Cut("tp", 0, (Part(spec.heads, spec.heads),))
            self.shards["sinks"] = Shard((spec.heads,), (cut,), role="scalar", std=site.std)
            self.sinks = nn.Parameter(torch.empty(self.heads))
        self.dropout = AttentionDropout(spec.dropout, site.seed, 4 * site.layer + 4, tp)
        self.proj = RowParallelLinear(
            spec.heads * width,
            site.hidden_size,
            tp,
            bias=spec.output_bias,
            std=site.output_std,
            sequence_parallel=site.sequence_parallel,
        )

    def new_cache(self) -> KVCache:
        return KVCache(self.window)

    def set_recompute(self, core: bool) -> None:
        self.recompute_core = core

    def flops(self, seq_length: int) -> int:
        """With the scores and the weighted sum of values, counted in full although they are causal; of a sliding window
        as many as it has keys."""
        keys = min(seq_length, self.window or seq_length)
        return super().flops(seq_length) + 4 * self.heads * self.width * keys

    def forward(
        self, x: Tensor, context: ForwardContext
    ) -> Tensor:  # [s or s/tp, b, h] -> the same
        qkv = self.qkv(x)  # [s, b, (q + k + v heads) * d]
        qkv = qkv.view(*qkv.shape[:2], -1, self.width)  # [s, b, q + k + v heads, d]
        gate = None
        if self.has_gate:
            qkv, gate = qkv.split((self.heads + 2 * self.groups, self.heads), 2)
        q, k, v = self._heads(qkv, context)
        if context.cache is not None:
            k, v = context.cache[self.layer].extend(k, v)
            context = context.with_last_keys(k.shape[2])
        if self.recompute_core and self.training:
            out = with_recompute(self._core, q, k, v, context)
        elif self.host is not None and self.training:
            out = self.host.keeping(self._core, q, k, v, context)
        else:
            out = self._core(q, k, v, context)
        if gate is not None:
            out = out * torch.sigmoid(gate)
        return self.proj(out.flatten(2))  # [s, b, n/tp * d] -> [s or s/tp, b, h]

    def _heads(self, qkv: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each [b, heads, s, d], from [s, b, q + k + v heads, d]: normed, then rotated."""
        heads = (self.heads, self.groups, self.groups)
        angles = None if self.rope is None else context.rotary[self.rope]
        interleaved = self.rope is not None and self.rope.interleaved
        if self.q_norm is None or self.k_norm is None:
            return split_heads(qkv, heads, angles, interleaved)
        q, k, v = qkv.split(heads, 2)
        q = rotate_heads(self.q_norm(q), angles, interleaved)
        k = rotate_heads(self.k_norm(k), angles, interleaved)
        return q, k, rotate_heads(v, None)

    def _core(self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
        """q, k and v, each [b, heads, s, d] -> [s, b, n/tp, d]."""
        if self.cp.axis.size > 1:
            core = CORES[self.cp.comm_type]
            scores = self._scores(context)
            sinks = self._sinks(q)
            out = core(q, k, v, sinks, context, self.window, scores, self.cp)
            return out.permute(2, 0, 1, 3)
        visible = context.visible.windowed(self.window)
        out = attend(q, k, v, visible, self._scores(context), self._sinks(q))
        return out.permute(2, 0, 1, 3)

    def _sinks(self, q: Tensor) -> Tensor | None:
        """A score [n/tp] of each head that has no value."""
        return q.new_zeros(self.heads) if self.has_fixed_sink else self.sinks

    def _scores(self, context: ForwardContext) -> Scores:
        dropout = None
        if self.training and self.dropout.p:
            dropout = partial(_dropped, self.dropout, self.heads, context)
        return Scores(self.scale, self.softcap, dropout)


def _qk_norm(spec: AttentionSpec, heads: int, tp: Axis) -> nn.Module | None:
    """The norm of queries or keys. One over each head sees only those of a tensor rank, and so has a part of the
    gradient on each."""
    if spec.qk_norm is None:
        return None
    if spec.qk_norm_over == "all_heads":
        return WideNorm(spec.qk_norm, heads, spec.head_width, tp)
    return build_norm(spec.qk_norm, spec.head_width, tp, sequence_parallel=True)


def _dropped(
    dropout: AttentionDropout,
    heads: int,
    context: ForwardContext,
    weights: Tensor,
    visible: Visible,
    first_head: int,
) -> Tensor:
    """Dropout of weights [b, n, q, k] of some of the `heads` of a tensor rank."""
    return dropout(weights, context, visible, dropout.rank * heads + first_head)
