"""Dropout that does not depend on the layout: its mask is a function of (seed, sample, site, global element), law 3.

Which element is which follows from the positions that the context gives, never from its place in a tensor.
"""

import torch
from torch import Tensor, nn

from megascratch.layers.context import ForwardContext, own_tokens
from megascratch.layers.kernels.dropout import Elements, Site, drop
from megascratch.layers.visible import Visible
from megascratch.parallel.axis import Axis


class Dropout(nn.Module):
    """Dropout on the residual stream [s or s/tp, b, h]; `site` is the number of this dropout in the model."""

    def __init__(self, p: float, seed: int, site: int, tp: Axis, sequence_parallel: bool = False):
        super().__init__()
        self.p = p
        self.seed = seed
        self.site = site
        self.tp = tp
        self.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rows = own_tokens(context.sample_positions, self.tp, self.sequence_parallel)  # [s or s/tp]
        elements = Elements(rows, None, x.shape[2])
        return drop(x, context.samples, elements, Site(self.seed, self.site, self.p), 1)


class AttentionDropout(nn.Module):
    """Dropout on attention weights [b, n/tp, q, k]; the heads of a rank keep their global numbers."""

    def __init__(self, p: float, seed: int, site: int, tp: Axis):
        super().__init__()
        self.p = p
        self.seed = seed
        self.site = site
        self.rank = tp.rank

    def forward(
        self,
        x: Tensor,
        context: ForwardContext,
        visible: Visible | None = None,
        first_head: int | None = None,
    ) -> Tensor:
        """Drops weights of the queries and keys of `visible` (default: the context's).

        Args:
            first_head: global number of the first head of x; default: x has all heads of this tensor rank.
        """
        heads = x.shape[1]
        length = context.sample_length
        visible = visible or context.visible
        first = self.rank * heads if first_head is None else first_head
        head = torch.arange(first, first + heads, device=x.device)
        rows = head[:, None] * length + visible.queries  # [n/tp, q]
        elements = Elements(rows.flatten(), visible.keys, length)
        return drop(x, context.samples, elements, Site(self.seed, self.site, self.p), 0)
