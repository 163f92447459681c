"""Attention in plain steps, with the log-sum-exp of each row: the definition, and what runs where no kernel does.

    score = scale * q kᵀ, bent by the soft cap; weight = exp(score - lse); out = dropout(weight) v

The log-sum-exp (lse) of a row lets parts of the keys be computed apart and merged (Milakov, Gimelshein 2018,
arXiv 1805.02867), and backward take the lse of all keys for a part of them (Dao et al. 2022, arXiv 2205.14135).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.layers.visible import Visible


class Scores(NamedTuple):
    """How products of queries and keys become the weights of values."""

    scale: float
    softcap: float | None = None
    dropout: Callable[[Tensor, Visible, int], Tensor] | None = None
    """Of weights [b, n, q, k], whose rows and keys `Visible` names; then the number of their first head."""
    first_head: int = 0
    """The number of q's first head among those of its tensor rank."""


def attend_forward(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Attention without autograd.

    Args:
        q: [b, n, q, d]. k: [b, g, k, d], v: [b, g, k, e]: each of the g heads is for n/g neighbouring query heads.

    Returns:
        out [b, n, q, e] and lse [b, n, q]; a query that sees no key has out 0 and lse -inf.
    """
    b, n, s, _ = q.shape
    out = q.new_empty(s, b, n, v.shape[3]).permute(1, 2, 0, 3)  # as the next layer reads it
    lse = torch.empty(b, n, s, dtype=_wide(q), device=q.device)
    for rows, columns in visible.row_blocks:
        block = _forward(
            q[:, :, rows], k[:, :, columns], v[:, :, columns], visible.part(rows, columns), scores
        )
        out[:, :, rows], lse[:, :, rows] = block
    return out, lse


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
    """The gradients of q, k and v. k and v may be a part of the keys: `out` and `lse` are those of all keys, sinks
    included."""
    grad_q = torch.empty_like(q)
    grad_k = torch.zeros(k.shape, dtype=_wide(k), device=k.device)
    grad_v = torch.zeros(v.shape, dtype=_wide(v), device=v.device)
    for rows, columns in visible.row_blocks:
        parts = _backward(
            grad[:, :, rows],
            q[:, :, rows],
            out[:, :, rows],
            lse[:, :, rows],
            k[:, :, columns],
            v[:, :, columns],
            visible.part(rows, columns),
            scores,
        )
        grad_q[:, :, rows] = parts[0]
        grad_k[:, :, columns] += parts[1]
        grad_v[:, :, columns] += parts[2]
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def attend_by_formula(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores, sinks: Tensor | None
) -> Tensor:
    """Attention in differentiable operations of torch alone, for compiled graphs and functorch's transforms."""
    bent = _bent(_products(q, k), scores).masked_fill(~visible.dense, -torch.inf)
    if sinks is not None:
        sink = sinks.to(bent.dtype)[:, None, None].expand(*bent.shape[:3], 1)
        weights = torch.cat((bent, sink), -1).softmax(-1)[..., :-1]
    else:
        weights = bent.softmax(-1)
    if scores.dropout is not None:
        weights = scores.dropout(weights, visible, scores.first_head)
    return _weighted_sum(weights.to(v.dtype), v)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores
) -> tuple[Tensor, Tensor]:
    """`attend_forward` of a few queries."""
    bent = _bent(_products(q, k), scores).to(_wide(q))
    lse = bent.masked_fill(~visible.dense, -torch.inf).logsumexp(-1)  # [b, n, q]
    weights = _weights(bent, lse, visible).to(v.dtype)
    if scores.dropout is not None:
        weights = scores.dropout(weights, visible, scores.first_head)
    return _weighted_sum(weights, v), lse


def _backward(
    grad: Tensor,
    q: Tensor,
    out: Tensor,
    lse: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    scores: Scores,
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_backward` of a few queries."""
    bent = _bent(_products(q, k), scores).to(_wide(q))
    weights = _weights(bent, lse, visible)
    grad_weights = _products(grad, v)  # [b, n, q, k]
    dropped = weights
    if scores.dropout is not None:  # a product with a mask: its gradient is the same product
        dropped = scores.dropout(weights, visible, scores.first_head)
        grad_weights = scores.dropout(grad_weights, visible, scores.first_head)
    grad_v = _sum_over_rows(dropped.to(grad.dtype), grad, v)
    delta = (grad * out).sum(-1, keepdim=True)  # [b, n, q, 1]
    grad_scores = weights * (grad_weights - delta)
    if scores.softcap is not None:
        grad_scores = grad_scores * (1 - (bent / scores.softcap).square())
    grad_scores = (grad_scores * scores.scale).to(q.dtype)
    return _weighted_sum(grad_scores, k), _sum_over_rows(grad_scores, q, k), grad_v


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of both, from the results [b, n, q, e] and [b, n, q] of each."""
    both = torch.logaddexp(lse, other_lse)
    seen = both > -torch.inf
    share = (lse - both).exp().where(seen, 0)[..., None]
    other_share = (other_lse - both).exp().where(seen, 0)[..., None]
    return (out * share + other_out * other_share).to(out.dtype), both


def _wide(x: Tensor) -> torch.dtype:
    """fp32, or the type of x if it is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q kᵀ: [b, n, q, d] and [b, g, k, d] -> [b, n, q, k]."""
    b, n, rows, d = q.shape
    groups = k.shape[1]
    grouped = q.reshape(b, groups, n // groups * rows, d)
    return (grouped @ k.transpose(2, 3)).view(b, n, rows, k.shape[2])


def _bent(products: Tensor, scores: Scores) -> Tensor:
    """The scores, soft cap included."""
    scaled = products * scores.scale
    if scores.softcap is None:
        return scaled
    return scores.softcap * torch.tanh(scaled / scores.softcap)


def _weights(bent: Tensor, lse: Tensor, visible: Visible) -> Tensor:
    """exp(score - lse), 0 for what is not seen; [b, n, q, k]."""
    return (bent - lse[..., None]).exp().masked_fill(~visible.dense, 0)


def _weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    """[b, n, q, k] and [b, g, k, e] -> [b, n, q, e]."""
    b, n, rows, keys = weights.shape
    groups = v.shape[1]
    grouped = weights.reshape(b, groups, n // groups * rows, keys)
    return (grouped @ v).view(b, n, rows, v.shape[3])


def _sum_over_rows(weights: Tensor, x: Tensor, k: Tensor) -> Tensor:
    """Sums of x [b, n, q, e] over queries and the heads of a group, weighted by [b, n, q, k]; as k, [b, g, k, e]."""
    b, n, rows, keys = weights.shape
    groups = k.shape[1]
    grouped = weights.reshape(b, groups, n // groups * rows, keys)
    return grouped.transpose(2, 3) @ x.reshape(b, groups, n // groups * rows, x.shape[3])
