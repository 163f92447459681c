"""Self-attention with fused q, k, v, grouped queries and heads cut over tp; the core is scaled_dot_product_attention,
for short samples on a CPU the same in plain products.

With more tp ranks than key/value heads, neighbouring ranks hold copies of the same k and v rows (`Shard.parts`).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.config.settings import ModelConfig
from megascratch.layers.dropout import AttentionDropout
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.recompute import recomputed
from megascratch.layers.rotary import rotate
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Part

SHORT = 128  # tokens: up to here plain products are faster on a CPU than the fused kernel, made for long rows


class _Causal(torch.autograd.Function):
    """softmax(q kᵀ / sqrt(d)) v over the tokens so far, in plain products; the weights [b n, s, s] are kept."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, n, s, d = q.shape
        q, k, v = (x.reshape(b * n, s, d) for x in (q, k, v))
        later = torch.full((s, s), -torch.inf, dtype=q.dtype).triu_(1)
        scores = torch.baddbmm(later.expand(b * n, s, s), q, k.transpose(1, 2), alpha=d**-0.5)
        weights = torch.softmax(scores, -1, out=scores)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(b, n, s, d)

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, weights = ctx.saved_tensors
        shape, scale = grad.shape, q.shape[-1] ** -0.5
        grad = grad.reshape(q.shape)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(scale)
        grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
        return grad_q.view(shape), grad_k.view(shape), torch.bmm(weights.transpose(1, 2), grad).view(shape)


def _is_short(q: Tensor, k: Tensor, context: "Context") -> bool:
    """Whether `_Causal` may take it, and is worth it."""
    causal = context.mask is None and q.shape == k.shape and q.shape[2] <= SHORT
    return causal and q.is_cpu and q.dtype.itemsize >= 4 and not torch.compiler.is_compiling()


@dataclass
class Cache:
    """Keys and values of the tokens so far, per layer; each [b, kv heads, s, d]."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.keys:
            k, v = torch.cat((self.keys[layer], k), 2), torch.cat((self.values[layer], v), 2)
        self.keys[layer], self.values[layer] = k, v
        return k, v


@dataclass(frozen=True)
class Context:
    """What every block of one forward shares."""

    samples: Tensor  # [b] numbers that key dropout
    rotary: tuple[Tensor, Tensor] | None = None  # cos [s, b, 1, d], sin [s, b, 1, d/2]
    mask: Tensor | None = None  # [b, 1, q, k] bool, True where attention is allowed; None: causal
    cache: Cache | None = None


class Attention(nn.Module):
    def __init__(self, model: ModelConfig, layer: int, seed: int, tp: Axis, sequence_parallel: bool, output_std: float):
        super().__init__()
        heads, groups, width = model.num_attention_heads, model.num_query_groups, model.kv_channels
        assert groups is not None and width is not None
        self.layer, self.width, self.recompute_core = layer, width, False
        self.heads, self.groups = heads // tp.size, max(1, groups // tp.size)
        parts = (Part(heads * width, heads), Part(groups * width, groups), Part(groups * width, groups))
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

    def forward(self, x: Tensor, context: Context) -> Tensor:  # [s or s/tp, b, h] -> the same
        qkv = self.qkv(x)
        qkv = qkv.view(*qkv.shape[:2], -1, self.width)  # [s, b, q + k + v heads, d]
        heads = self.heads, self.groups, self.groups
        if context.rotary is not None:
            q, k, v = rotate(qkv, *context.rotary, heads)
        else:
            q, k, v = qkv.permute(1, 2, 0, 3).split(heads, 1)  # [b, n, s, d]
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        if self.recompute_core and self.training:
            return self.proj(recomputed(self._core, q, k, v, context).flatten(2))
        return self.proj(self._core(q, k, v, context).flatten(2))

    def _core(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Three of [b, heads, s, d] -> [s, b, n/tp, d]."""
        k, v = self._spread(k), self._spread(v)
        if self.training and self.dropout.p:
            out = self._with_dropout(q, k, v, context)
        elif _is_short(q, k, context):
            out = _Causal.apply(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=context.mask, is_causal=context.mask is None)
        return out.permute(2, 0, 1, 3)

    def _spread(self, x: Tensor) -> Tensor:
        """Each key/value head serves several neighbouring query heads."""
        times = self.heads // self.groups
        return x if times == 1 else x.repeat_interleave(times, 1)

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """The same in plain steps: fused kernels draw masks that depend on the layout."""
        mask = context.mask
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.transpose(2, 3)) * self.width**-0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return self.dropout(weights, context.samples) @ v
