"""Dropout whose mask is a function of (seed, sample, site, global element), so every layout drops the same elements
(law 3).
"""

import torch
from torch import Tensor, nn

from megascratch.parallel.mesh import Axis
from megascratch.parallel.random import keep_mask, sample_keys


class Dropout(nn.Module):
    """On the residual stream [s or s/tp, b, h]; `site` numbers the place in the model."""

    def __init__(self, p: float, seed: int, site: int, tp: Axis, sequence_parallel: bool = False):
        super().__init__()
        self.p, self.seed, self.site = p, seed, site
        self.part = tp.rank if sequence_parallel else 0

    def forward(self, x: Tensor, samples: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        s, _, h = x.shape
        position = torch.arange(self.part * s, (self.part + 1) * s, device=x.device)
        index = position[:, None, None] * h + torch.arange(h, device=x.device)
        keep = keep_mask(sample_keys(self.seed, self.site, samples)[:, None], index, self.p)
        return x * keep / (1 - self.p)


class AttentionDropout(nn.Module):
    """On attention weights [b, n/tp, s, s]; a rank's heads keep their numbers in the whole."""

    def __init__(self, p: float, seed: int, site: int, tp: Axis):
        super().__init__()
        self.p, self.seed, self.site, self.rank = p, seed, site, tp.rank

    def forward(self, x: Tensor, samples: Tensor) -> Tensor:
        _, heads, queries, keys = x.shape
        head = torch.arange(self.rank * heads, (self.rank + 1) * heads, device=x.device)
        row = head[:, None] * queries + torch.arange(queries, device=x.device)
        index = row[:, :, None] * keys + torch.arange(keys, device=x.device)
        keep = keep_mask(sample_keys(self.seed, self.site, samples)[:, None, None, None], index, self.p)
        return x * keep / (1 - self.p)
