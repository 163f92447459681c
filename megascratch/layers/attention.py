"""Self-attention with fused q, k, v, grouped queries and heads cut over tp; the core is scaled_dot_product_attention,
for short samples on a CPU the same in plain products.

With more tp ranks than key/value heads, neighbouring ranks hold copies of the same k and v rows (`Shard.parts`).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.config.settings import ModelConfig
from megascratch.layers import fused
from megascratch.layers.dropout import AttentionDropout
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.recompute import recomputed
from megascratch.layers.rotary import rotate
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Part

SHORT = 256  # tokens: up to here plain products are faster on a CPU than the fused kernel, made for long rows
_ROWS = 128  # queries at once, with the keys up to the last of them: a product with keys that come later is for nothing


class _Causal(torch.autograd.Function):
    """softmax(q kᵀ / sqrt(d)) v over the tokens so far, in plain products of stretches of queries with the keys that
    they see; the weights, about half of [b n, s, s], are kept."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, n, s, d = q.shape
        q, k, v = (x.reshape(b * n, s, d) for x in (q, k, v))
        out, parts = q.new_empty(s, b, n, d), []  # as the next layer wants it
        rows = out.view(s, b * n, d).transpose(0, 1)
        for first in range(0, s, _ROWS):
            end = min(first + _ROWS, s)
            parts.append(_weights(q[:, first:end], k[:, :end], first))
            rows[:, first:end] = torch.bmm(parts[-1], v[:, :end])
        ctx.save_for_backward(q, k, v, *parts)
        return out.permute(1, 2, 0, 3)

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, *parts = ctx.saved_tensors
        shape, end, scale = grad.shape, grad.shape[2], q.shape[-1] ** -0.5
        grad = grad.reshape(q.shape)
        grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
        for weights in reversed(parts):
            first = end - weights.shape[1]
            mine, seen = slice(first, end), slice(0, end)
            grad_weights = torch.bmm(grad[:, mine], v[:, seen].transpose(1, 2))
            grad_scores = _weights_backward(weights, grad_weights, first, scale)
            grad_q[:, mine] = torch.bmm(grad_scores, k[:, seen])
            beta = 0 if end == shape[2] else 1  # the last stretch sees all keys and comes first: nothing to add to
            grad_k[:, seen].baddbmm_(grad_scores.transpose(1, 2), q[:, mine], beta=beta)
            grad_v[:, seen].baddbmm_(weights.transpose(1, 2), grad[:, mine], beta=beta)
            end = first
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape)


def _weights(q: Tensor, k: Tensor, first: int) -> Tensor:
    """Those of queries first, first + 1 .. [n, rows, d] over the keys up to the last of them [n, columns, d]."""
    scale, size = q.shape[-1] ** -0.5, (q.shape[0], q.shape[1], k.shape[1])
    if fused.takes(q, k):
        return fused.causal_softmax_(torch.bmm(q, k.transpose(1, 2)), first, scale)
    later = torch.full(size[1:], -torch.inf, dtype=q.dtype).triu_(first + 1)
    scores = torch.baddbmm(later.expand(size), q, k.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, -1, out=scores)


def _weights_backward(weights: Tensor, grad: Tensor, first: int, scale: float) -> Tensor:
    """The weights' gradient -> that of the scores before they are scaled."""
    if fused.takes(weights, grad):
        return fused.causal_softmax_backward_(weights, grad, first, scale)
    return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype).mul_(scale)


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
