"""Self-attention with a fused qkv projection, grouped-query attention and heads split over tp.

With more tp ranks than key/value heads, neighbouring ranks hold replicas of the same k and v rows (`Shard.parts`).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from megascratch.config.settings import ModelConfig
from megascratch.layers.dropout import AttentionDropout
from megascratch.layers.kernels.attention import attention
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.recompute import with_recompute
from megascratch.layers.rotary import split_heads
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Part


@dataclass
class KVCache:
    """The keys and values of the previous tokens, by layer; each [b, kv heads, s, d]."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends to the keys and values of a layer, and returns all of them."""
        if layer in self.keys:
            k = torch.cat((self.keys[layer], k), 2)
            v = torch.cat((self.values[layer], v), 2)
        self.keys[layer] = k
        self.values[layer] = v
        return k, v


@dataclass(frozen=True)
class ForwardContext:
    """The inputs that all blocks of one forward share."""

    samples: Tensor  # [b] sample numbers, the key of dropout
    rotary: tuple[Tensor, Tensor] | None = None  # cos [s, b, 1, d], sin [s, b, 1, d/2]
    mask: Tensor | None = None  # [b, 1, q, k] bool, True where attention is allowed; None: causal
    cache: KVCache | None = None


class Attention(nn.Module):
    def __init__(
        self,
        model: ModelConfig,
        layer: int,
        seed: int,
        tp: Axis,
        sequence_parallel: bool,
        output_std: float,
    ):
        super().__init__()
        heads = model.num_attention_heads
        groups = model.num_query_groups
        width = model.kv_channels
        assert groups is not None and width is not None
        self.layer = layer
        self.width = width
        self.heads = heads // tp.size
        self.groups = max(1, groups // tp.size)
        self.recompute_core = False
        q_part = Part(heads * width, heads)
        kv_part = Part(groups * width, groups)
        parts = (q_part, kv_part, kv_part)
        self.qkv = ColumnParallelLinear(
            model.hidden_size,
            sum(part.size for part in parts),
            tp,
            parts=parts,
            bias=model.add_bias_linear or model.add_qkv_bias,
            std=model.init_method_std,
            sequence_parallel=sequence_parallel,
        )
        self.dropout = AttentionDropout(model.attention_dropout, seed, 4 * layer + 4, tp)
        self.proj = RowParallelLinear(
            heads * width,
            model.hidden_size,
            tp,
            bias=model.add_bias_linear,
            std=output_std,
            sequence_parallel=sequence_parallel,
        )

    def forward(
        self, x: Tensor, context: ForwardContext
    ) -> Tensor:  # [s or s/tp, b, h] -> the same
        qkv = self.qkv(x)  # [s, b, (q + k + v heads) * d]
        qkv = qkv.view(*qkv.shape[:2], -1, self.width)  # [s, b, q + k + v heads, d]
        heads = (self.heads, self.groups, self.groups)
        q, k, v = split_heads(qkv, heads, context.rotary)  # each [b, heads, s, d]
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        if self.recompute_core and self.training:
            out = with_recompute(self._core, q, k, v, context)
        else:
            out = self._core(q, k, v, context)
        return self.proj(out.flatten(2))  # [s, b, n/tp * d] -> [s or s/tp, b, h]

    def _core(self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
        """q, k and v, each [b, heads, s, d] -> [s, b, n/tp, d]."""
        k = self._repeat_kv(k)
        v = self._repeat_kv(v)
        if self.training and self.dropout.p:
            out = self._with_dropout(q, k, v, context)
        else:
            out = attention(q, k, v, context.mask)
        return out.permute(2, 0, 1, 3)

    def _repeat_kv(self, x: Tensor) -> Tensor:
        """Repeats each key/value head for the neighbouring query heads that share it."""
        times = self.heads // self.groups
        return x if times == 1 else x.repeat_interleave(times, 1)

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
        """Attention with dropout in plain steps, because the dropout masks of fused kernels depend on the layout."""
        mask = context.mask
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.transpose(2, 3)) * self.width**-0.5  # [b, n/tp, q, k]
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return self.dropout(weights, context.samples) @ v
