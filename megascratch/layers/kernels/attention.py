"""softmax(q kᵀ / sqrt(d)) v: torch's scaled_dot_product_attention; for short samples on a CPU, and with dropout, plain
matrix products.

On the meta device torch would compute attention in plain steps. In a dry run the operation that torch chooses on the
target is called by its name instead: it keeps the output and the log of each row's sum, and no scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from megascratch.layers.attention_pieces import QueryRun
from megascratch.layers.kernels import cpu, flash_attention, plain_attention
from megascratch.layers.kernels.choice import only_formulas
from megascratch.layers.kernels.plain_attention import Scores as Scores
from megascratch.layers.kernels.plain_attention import merge as merge
from megascratch.layers.kernels.products import ON_INTEL
from megascratch.layers.visible import Visible
from megascratch.parallel.device_kind import device_kind, is_imitated

# Sequence lengths for which plain products are faster on a CPU than torch's fused kernel, which is made for long rows.
# That kernel uses MKL, which on Intel processors is fast enough at very small products to win there again.
SHORT = range(96 if ON_INTEL else 1, 257)
_ROWS = 128  # queries at once, with the keys up to the last of them: products with later keys would be masked


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    scores: Scores,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of q [b, n, s, d] to k and v [b, g, s, d] -> [b, n, s, d]. Dropout of a plain causal sample keeps a
    number for each pair of query and key, which recomputation of the core frees.

    Args:
        sinks: [n], a score of each head that takes part in the softmax and has no value (Xiao et al. 2023,
            arXiv 2309.17453).
    """
    is_plain = _is_plain(q, k, v, scores) and sinks is None
    in_pieces = not visible.is_causal and flash_attention.supports(q, k, v, scores)
    if is_plain and (only_formulas() or not in_pieces):
        return _by_torch(q, k, v, visible, scores)
    if only_formulas() or (visible.is_causal and scores.dropout is not None):
        return plain_attention.attend_by_formula(q, k, v, visible, scores, sinks)
    return _Attend.apply(q, k, v, sinks, visible, scores)


def attend_forward(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores
) -> tuple[Tensor, Tensor]:
    """As `plain_attention.attend_forward`, by the fastest kernel."""
    runs = _runs(q, k, v, visible, scores)
    if runs is None:
        return plain_attention.attend_forward(q, k, v, visible, scores)
    return flash_attention.forward(q, k, v, visible, scores, runs)


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible: Visible,
    scores: Scores,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain_attention.attend_backward`, by the fastest kernel."""
    runs = _runs(q, k, v, visible, scores)
    if runs is None:
        return plain_attention.attend_backward(grad, q, k, v, out, lse, visible, scores)
    return flash_attention.backward(grad, q, k, v, out, lse, visible, scores, runs)


def _runs(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores
) -> list[list[QueryRun]] | None:
    """The runs that the fused kernel takes; None: it does not take these."""
    return visible.runs if flash_attention.supports(q, k, v, scores) else None


def _is_plain(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> bool:
    """Whether torch's own attention computes these scores."""
    return scores.softcap is None and scores.dropout is None and q.shape[3] == v.shape[3]


def _by_torch(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Attention without soft cap, dropout and sinks, with as many or fewer key/value heads."""
    has_own_scale = scores.scale != q.shape[3] ** -0.5
    if visible.is_causal and not has_own_scale and _is_short(q, k, v):
        times = q.shape[1] // k.shape[1]
        return _ShortCausalAttention.apply(q, _repeated(k, times), _repeated(v, times))
    mask = None if visible.is_causal else visible.dense
    if is_imitated(q):
        return _imitated(q, k, v, mask, scores.scale)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scores.scale if has_own_scale else None,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _repeated(x: Tensor, times: int) -> Tensor:
    """Each key/value head for the neighbouring query heads that share it."""
    return x if times == 1 else x.repeat_interleave(times, 1)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        visible: Visible,
        scores: Scores,
    ) -> Tensor:
        out, lse = attend_forward(q, k, v, visible, scores)
        if sinks is not None:
            out, lse = join_sinks(out, lse, sinks)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.rest = visible, scores
        return out

    @staticmethod
    @cpu.once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, sinks, out, lse = ctx.saved_tensors
        grads = attend_backward(grad, q, k, v, out, lse, *ctx.rest)
        grad_sinks = None if sinks is None else grad_of_sinks(grad, out, lse, sinks)
        return (*grads, grad_sinks, None, None)


def join_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """out [b, n, q, e] and lse [b, n, q] with a sink [n] for each head; after all keys are merged."""
    joined = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    return out * (lse - joined).exp()[..., None].to(out.dtype), joined


def grad_of_sinks(grad: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """The gradient [n] of the sinks from that of the output; `out` and `lse` have them joined."""
    delta = (grad * out).sum(-1)  # [b, n, q]
    weights = (sinks.to(lse.dtype)[:, None] - lse).exp()
    return -(weights * delta).sum((0, 2)).to(sinks.dtype)


def _imitated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """What `F.scaled_dot_product_attention` calls on the target of a dry run, causal without a mask."""
    causal = mask is None
    if mask is not None:  # what is added to the scores
        mask = torch.where(mask, q.new_zeros(()), q.new_full((), -torch.inf))
    if device_kind(q) == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)[0]
    if q.dtype == torch.float64:  # no fused kernel of CUDA has it
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
        )
    if causal and q.dtype != torch.float32:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q, k, v, 0.0, True, scale=scale)[0]
    times = q.shape[1] // k.shape[1]
    k = _repeated(k, times)  # this kernel has no groups
    v = _repeated(v, times)
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, mask, q.requires_grad, 0.0, causal, scale=scale)[0]


def _is_short(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `_ShortCausalAttention` supports these inputs and is faster."""
    if q.shape[2:] != k.shape[2:] or q.shape[2] not in SHORT:
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
        if s <= _ROWS:
            weights, rows = _attended(q, k, v, 0)
            blocks = [weights]
            # in the layout that the next layer reads: [s, b, n, d]
            out = rows.view(n, b, s, d).permute(2, 1, 0, 3).contiguous()
        else:
            blocks = []
            out = q.new_empty(s, b, n, d)
            for first in range(0, s, _ROWS):
                end = min(first + _ROWS, s)
                weights, rows = _attended(q[:, first:end], k[:, :end], v[:, :end], first)
                out[first:end] = rows.view(n, b, end - first, d).permute(2, 1, 0, 3)
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
        gradients = _gradients if len(blocks) == 1 else _gradients_of_blocks
        grads = gradients(q, k, v, blocks, grad)
        return tuple(x.view(n, b, s, d).transpose(0, 1) for x in grads)


def _attended(q: Tensor, k: Tensor, v: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The attention weights [n b, rows, keys] of the queries from number `first` on, and the weighted values."""
    scores = torch.bmm(q, k.transpose(1, 2))
    weights = cpu.causal_softmax_(scores, first, q.shape[-1] ** -0.5)
    return weights, torch.bmm(weights, v)


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[Tensor], grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v where all queries are one block."""
    (weights,) = blocks
    grad_weights = torch.bmm(grad, v.transpose(1, 2))
    grad_scores = cpu.causal_softmax_backward_(weights, grad_weights, 0, q.shape[-1] ** -0.5)
    grad_q = torch.bmm(grad_scores, k)
    grad_k = torch.bmm(grad_scores.transpose(1, 2), q)
    return grad_q, grad_k, torch.bmm(weights.transpose(1, 2), grad)


def _gradients_of_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[Tensor], grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for several blocks of queries. The last one sees all keys and comes first: it has nothing to add to."""
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    end = q.shape[1]
    beta = 0
    for weights in reversed(blocks):
        first = end - weights.shape[1]
        block_q = q[:, first:end]
        block_grad = grad[:, first:end]
        seen_k = k[:, :end]
        grad_weights = torch.bmm(block_grad, v[:, :end].transpose(1, 2))
        scale = q.shape[-1] ** -0.5
        grad_scores = cpu.causal_softmax_backward_(weights, grad_weights, first, scale)
        grad_q[:, first:end].baddbmm_(grad_scores, seen_k, beta=0)
        grad_k[:, :end].baddbmm_(grad_scores.transpose(1, 2), block_q, beta=beta)
        grad_v[:, :end].baddbmm_(weights.transpose(1, 2), block_grad, beta=beta)
        end = first
        beta = 1
    return grad_q, grad_k, grad_v
