"""A norm over all heads of the queries, or of the keys, whose heads are split over tp (OLMo 2, arXiv 2501.00656).

The sums of each row go over tp. Ranks that hold copies of one key/value head count it once together.
"""

import torch
from torch import Tensor, nn

from megascratch.config.errors import UserError
from megascratch.config.layers import NormSpec
from megascratch.config.layout import Layout
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import copy_to, reduce_from
from megascratch.parallel.shard import Cut, Part, Role, Shard

KINDS = ("LayerNorm", "RMSNorm")


class WideNorm(nn.Module):
    """Norms x [..., heads/tp, d] over all heads together.

    Raises: UserError for a norm that is not one of `KINDS`.
    """

    def __init__(self, spec: NormSpec, heads: int, width: int, tp: Axis):
        super().__init__()
        if spec.kind not in KINDS:
            raise UserError(
                f"qk-layernorm-over all_heads is there for {' and '.join(KINDS)}, not for {spec.kind}"
            )
        self.tp = tp
        self.epsilon = spec.epsilon
        self.centred = spec.kind == "LayerNorm"
        self.minus_one = spec.minus_one
        self.size = heads * width
        self.copies = max(1, tp.size // heads)
        cut = Cut("tp", 0, (Part(self.size, heads),))
        fill = 0.0 if spec.minus_one else 1.0
        self.shards = {"weight": self._shard(cut, "norm", fill)}
        self.weight = self._parameter("weight")
        self.bias = None
        if spec.bias and self.centred:
            self.shards["bias"] = self._shard(cut, "bias", 0.0)
            self.bias = self._parameter("bias")

    def _shard(self, cut: Cut, role: Role, fill: float) -> Shard:
        return Shard((self.size,), (cut,), role=role, fill=fill)

    def _parameter(self, name: str) -> nn.Parameter:
        return nn.Parameter(torch.empty(self.shards[name].local_shape(Layout(tp=self.tp.size))))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(-2)  # [s, b, heads/tp * d]
        wide = rows.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            wide = wide - self._mean(wide)
        normed = wide * (self._mean(wide.square()) + self.epsilon).rsqrt()
        weight = self.weight.to(wide.dtype)
        if self.minus_one:
            weight = weight + 1
        normed = normed * weight
        if self.bias is not None:
            normed = normed + self.bias.to(wide.dtype)
        return normed.to(x.dtype).view(x.shape)

    def _mean(self, x: Tensor) -> Tensor:
        """Over all heads of all ranks: [..., heads/tp * d] -> [..., 1]."""
        total = x.sum(-1, keepdim=True) / self.copies
        # every rank reads the sum, and each has a part of its gradient
        total = copy_to(reduce_from(total, self.tp), self.tp)
        return total / self.size
