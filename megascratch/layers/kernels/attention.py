"""softmax(q kᵀ / sqrt(d)) v: torch's scaled_dot_product_attention; for short samples on a CPU, and with dropout, plain
matrix products.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megascratch.layers.kernels import cpu
from megascratch.layers.kernels.products import ON_INTEL
from megascratch.layers.visible import Visible

# Sequence lengths for which plain products are faster on a CPU than torch's fused kernel, which is made for long rows.
# That kernel uses MKL, which on Intel processors is fast enough at very small products to win there again.
SHORT = range(96 if ON_INTEL else 1, 257)
_ROWS = 128  # queries at once, with the keys up to the last of them: products with later keys would be masked


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    """Attention of q, k and v, each [b, n, s, d] -> [b, n, s, d]."""
    if visible.is_causal:
        if _is_short(q, k, v):
            return _ShortCausalAttention.apply(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible.dense)


def attention_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """As `attention`, with `dropout` of the weights [b, n, q, k]; in plain steps, because the dropout masks of fused
    kernels depend on the layout."""
    scores = (q @ k.transpose(2, 3)) * q.shape[3] ** -0.5  # [b, n, q, k]
    weights = scores.masked_fill(~visible.dense, -torch.inf).softmax(-1)
    return dropout(weights) @ v


def _is_short(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `_ShortCausalAttention` supports these inputs and is faster."""
    if q.shape != k.shape or q.shape[2] not in SHORT:
        return False
    return cpu.supports(q, k, v)


class _ShortCausalAttention(torch.autograd.Function):
    """softmax(q kᵀ / sqrt(d)) v with a causal mask, in plain products of blocks of queries with the keys that they see.
    Backward needs the attention weights: all of [b n, s, s] up to s = 128, three quarters of it at s = 256.
    Recomputation of the core frees them."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, n, s, d = q.shape
        q, k, v = (x.transpose(0, 1).reshape(n * b, s, d) for x in (q, k, v))
        out = q.new_empty(s, b, n, d)  # in the layout that the next layer reads
        blocks = []  # attention weights, each [n b, rows, keys]
        for first in range(0, s, _ROWS):
            end = min(first + _ROWS, s)
            block_q = q[:, first:end]
            seen_k = k[:, :end]
            seen_v = v[:, :end]
            scores = torch.bmm(block_q, seen_k.transpose(1, 2))  # [n b, rows, keys]
            weights = cpu.causal_softmax_(scores, first, d**-0.5)
            rows = torch.bmm(weights, seen_v).view(n, b, end - first, d)
            out[first:end] = rows.permute(2, 1, 0, 3)  # [rows, b, n, d]
            blocks.append(weights)
        ctx.save_for_backward(q, k, v, *blocks)
        return out.permute(1, 2, 0, 3)  # [b, n, s, d]

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, *blocks = ctx.saved_tensors
        if not cpu.can_read(grad):
            raise RuntimeError(
                "attention got a gradient that is fake, or inside of vmap, after an ordinary forward: "
                "run the forward in the same mode or transform"
            )
        b, n, s, d = grad.shape
        grad = grad.transpose(0, 1).reshape(n * b, s, d)
        grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
        end = s
        for weights in reversed(blocks):
            first = end - weights.shape[1]
            block_q = q[:, first:end]
            block_grad = grad[:, first:end]
            seen_k = k[:, :end]
            seen_v = v[:, :end]
            grad_weights = torch.bmm(block_grad, seen_v.transpose(1, 2))
            grad_scores = cpu.causal_softmax_backward_(weights, grad_weights, first, d**-0.5)
            # the last block sees all keys and comes first: nothing to add to
            beta = 0 if end == s else 1
            grad_q[:, first:end].baddbmm_(grad_scores, seen_k, beta=0)
            grad_k[:, :end].baddbmm_(grad_scores.transpose(1, 2), block_q, beta=beta)
            grad_v[:, :end].baddbmm_(weights.transpose(1, 2), block_grad, beta=beta)
            end = first
        return tuple(x.view(n, b, s, d).transpose(0, 1) for x in (grad_q, grad_k, grad_v))
