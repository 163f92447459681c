"""Self-attention with a fused qkv projection, grouped-query attention and heads split over tp.

With more tp ranks than key/value heads, neighbouring ranks hold replicas of the same k and v rows (`Cut.parts`).
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megascratch.config.layers import AttentionSpec
from megascratch.layers.context import ForwardContext
from megascratch.layers.context_parallel.core import CORES
from megascratch.layers.dropout import AttentionDropout
from megascratch.layers.kernels.attention import Scores, attend
from megascratch.layers.kernels.rotary import split_heads
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.recompute import with_recompute
from megascratch.layers.sublayer import Mixer, SublayerSite
from megascratch.layers.visible import Visible
from megascratch.parallel.shard import Part


@dataclass
class KVCache:
    """The keys and values of the previous tokens of one layer; each [b, kv heads, s, d], None before the first."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends to the keys and values, and returns all of them."""
        if self.keys is not None and self.values is not None:
            k = torch.cat((self.keys, k), 2)
            v = torch.cat((self.values, v), 2)
        self.keys = k
        self.values = v
        return k, v


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
        q_part = Part(spec.heads * width, spec.heads)
        kv_part = Part(spec.groups * width, spec.groups)
        parts = (q_part, kv_part, kv_part)
        self.qkv = ColumnParallelLinear(
            site.hidden_size,
            sum(part.size for part in parts),
            tp,
            parts=parts,
            bias=spec.qkv_bias,
            std=site.std,
            sequence_parallel=site.sequence_parallel,
        )
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
        return KVCache()

    def set_recompute(self, core: bool) -> None:
        self.recompute_core = core

    def flops(self, seq_length: int) -> int:
        """With the scores and the weighted sum of values, counted in full although they are causal."""
        return super().flops(seq_length) + 4 * self.heads * self.width * seq_length

    def forward(
        self, x: Tensor, context: ForwardContext
    ) -> Tensor:  # [s or s/tp, b, h] -> the same
        qkv = self.qkv(x)  # [s, b, (q + k + v heads) * d]
        qkv = qkv.view(*qkv.shape[:2], -1, self.width)  # [s, b, q + k + v heads, d]
        heads = (self.heads, self.groups, self.groups)
        if self.rope is None:
            q, k, v = split_heads(qkv, heads)  # each [b, heads, s, d]
        else:
            angles = context.rotary[self.rope]
            q, k, v = split_heads(qkv, heads, angles, self.rope.interleaved)
        if context.cache is not None:
            k, v = context.cache[self.layer].extend(k, v)
        if self.recompute_core and self.training:
            out = with_recompute(self._core, q, k, v, context)
        else:
            out = self._core(q, k, v, context)
        return self.proj(out.flatten(2))  # [s, b, n/tp * d] -> [s or s/tp, b, h]

    def _core(self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
        """q, k and v, each [b, heads, s, d] -> [s, b, n/tp, d]."""
        if self.cp.axis.size > 1:
            core = CORES[self.cp.comm_type]
            scores = self._scores(context)
            out = core(q, k, v, None, context, self.window, scores, self.cp)
            return out.permute(2, 0, 1, 3)
        visible = context.visible.windowed(self.window)
        return attend(q, k, v, visible, self._scores(context)).permute(2, 0, 1, 3)

    def _scores(self, context: ForwardContext) -> Scores:
        dropout = None
        if self.training and self.dropout.p:
            dropout = partial(_dropped, self.dropout, self.heads, context)
        return Scores(self.scale, self.softcap, dropout)


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
