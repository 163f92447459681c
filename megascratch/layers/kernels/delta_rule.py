"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464): a state per head that decays, and in which each token
replaces what its key finds by its value.

    S' = exp(g_t) S_{t-1}
    S_t = S' + k_t (beta_t (v_t - S'ᵀ k_t))ᵀ
    o_t = S_tᵀ q_t

`recurrent` is this definition. `chunked` computes the same for several tokens at once, with matrix products: within a
chunk the values that are written solve a triangular system (the WY form of Yang et al. 2024, arXiv 2406.06484).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens


class DeltaInputs(NamedTuple):
    """Shapes: b samples, n heads, s tokens, d width of a key, e width of a value; one dtype."""

    q: Tensor
    """[b, n, s, d], scaled."""
    k: Tensor
    """[b, n, s, d]"""
    v: Tensor
    """[b, n, s, e]"""
    g: Tensor
    """[b, n, s] logarithm of the decay, at most 0."""
    beta: Tensor
    """[b, n, s] how much of the old value is replaced."""


def recurrent(
    inputs: DeltaInputs, positions: Tensor, starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Token by token.

    Args:
        positions: [s] of the tokens in their samples, one after the other.
        starts: [b, s] where the document of each token begins, at which the state is 0; None: nowhere.
        state: [b, n, d, e] before the first token.

    Returns: the output [b, n, s, e] and the state after the last token.
    """
    q, k, v, g, beta = inputs
    rows = []
    for t in range(q.shape[2]):
        if starts is not None:
            goes_on = starts[:, t] < positions[t]  # [b]
            state = state * goes_on.to(state.dtype)[:, None, None, None]
        state = state * g[:, :, t].exp()[..., None, None]
        found = (state * k[:, :, t, :, None]).sum(2)  # [b, n, e]
        written = beta[:, :, t, None] * (v[:, :, t] - found)
        state = state + k[:, :, t, :, None] * written[:, :, None]
        rows.append((state * q[:, :, t, :, None]).sum(2))
    return torch.stack(rows, 2), state


def chunked(
    inputs: DeltaInputs, positions: Tensor, starts: Tensor | None, state: Tensor, size: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """As `recurrent`, `size` tokens at once."""
    length = inputs.q.shape[2]
    rows = []
    for first in range(0, length, size):
        piece = slice(first, min(first + size, length))
        part = DeltaInputs(*(x[:, :, piece] for x in inputs))
        own_starts = None if starts is None else starts[:, piece]
        out, state = _chunk(part, positions[piece], own_starts, state)
        rows.append(out)
    return torch.cat(rows, 2), state


def _chunk(
    inputs: DeltaInputs, positions: Tensor, starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    q, k, v, g, beta = inputs
    decay = g.cumsum(-1)  # [b, n, c] since before the chunk
    not_later = positions <= positions[:, None]  # [c, c]
    sees_state = torch.ones_like(not_later[:1, :1])  # [1, 1]
    if starts is not None:
        not_later = (positions >= starts[..., None]) & not_later  # [b, c, c]
        not_later = not_later[:, None]
        sees_state = (starts < positions[0])[:, None]  # [b, 1, c]
    between = decay[..., :, None] - decay[..., None, :]  # [b, n, c, c]
    between = between.masked_fill(~not_later, -torch.inf).exp()
    since = decay.exp() * sees_state  # [b, n, c] what is left of the state
    k_beta = k * beta[..., None]
    earlier = torch.tril(k_beta @ k.transpose(2, 3) * between, -1)
    unit = torch.eye(k.shape[2], dtype=k.dtype, device=k.device)
    wanted = v * beta[..., None] - (k_beta * since[..., None]) @ state
    written = torch.linalg.solve_triangular(
        unit + earlier, wanted, upper=False, unitriangular=True
    )  # [b, n, c, e]
    out = (q * since[..., None]) @ state + (q @ k.transpose(2, 3) * between) @ written
    kept = k * between[..., -1, :, None]  # what is left of each key at the end
    state = state * since[..., -1, None, None] + kept.transpose(2, 3) @ written
    return out, state


def short_convolution(
    x: Tensor, weight: Tensor, positions: Tensor, starts: Tensor | None
) -> Tensor:
    """silu of a causal convolution of each channel within documents: x [t + s, b, c], weight [c, k] -> [s, b, c].

    Args:
        positions: [s] of the last s tokens of x.
        starts: [b, s] where their documents begin; None: only tokens before position 0 are missing.
    """
    width = weight.shape[1]
    length = len(positions)
    before = width - 1 - (x.shape[0] - length)
    x = F.pad(x, (0, 0, 0, 0, before, 0))
    first = torch.zeros_like(positions)[:, None] if starts is None else starts.t()  # [s, b or 1]
    total = torch.zeros_like(x[:length])
    for back in range(width):
        column = x[width - 1 - back : width - 1 - back + length]
        term = column * weight[:, width - 1 - back]
        if back:
            term = term * (positions[:, None] - back >= first)[..., None]
        total = total + term
    return F.silu(total)
