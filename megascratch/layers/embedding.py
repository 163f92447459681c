"""Token and position embeddings, with the vocabulary split over tp: ids [b, s] -> [s or s/tp, b, h]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.config.layout import Layout
from megascratch.config.resolve import padded_vocab_size
from megascratch.layers.context import own_tokens
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import reduce_from, reduce_scatter_to
from megascratch.parallel.shard import Cut, Role, Shard


def vocab_shard(
    rows: int, hidden_size: int, divisible_by: int, tp: Axis, std: float, role: Role
) -> Shard:
    """The shard of the word table, or of the output matrix, which has the same shape.

    Args:
        rows: those that are weights of the model, without padding of the layout.
    """
    padded = padded_vocab_size(rows, divisible_by, tp.size)
    cuts = (Cut("tp", 0, padded=padded),)
    return Shard((rows, hidden_size), cuts, role=role, std=std)


class _Rows(torch.autograd.Function):
    """weight[ids]; the gradient is added to the rows of the sink, without a dense gradient of the table."""

    @staticmethod
    def forward(ctx, weight: nn.Parameter, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (ids,) = ctx.saved_tensors
        weight = ctx.weight
        ids = ids.flatten()  # [n]
        grad = grad.flatten(0, -2)  # [n, h]
        sink = getattr(weight, "grad_sink", None)
        if sink is None:
            return torch.zeros_like(weight).index_add_(0, ids, grad), None
        sink.rows(weight, ids, grad)
        return None, None


def rows(weight: nn.Parameter, ids: Tensor) -> Tensor:
    return _Rows.apply(weight, ids)


class VocabParallelEmbedding(nn.Module):
    """Each rank looks up the ids in its part of the vocabulary; the results are summed over tp."""

    def __init__(self, shard: Shard, tp: Axis, sequence_parallel: bool = False):
        super().__init__()
        self.tp = tp
        self.scatter = sequence_parallel and tp.size > 1
        self.shards = {"weight": shard}
        self.weight = nn.Parameter(torch.empty(shard.local_shape(Layout(tp=tp.size))))
        self.first = tp.rank * self.weight.shape[0]

    def forward(self, ids: Tensor) -> Tensor:  # [b, s] -> [s or s/tp, b, h]
        ids = ids.t()  # [s, b]
        if self.tp.size == 1:
            return rows(self.weight, ids)
        local = ids - self.first
        mine = (local >= 0) & (local < self.weight.shape[0])
        partial = rows(self.weight, local.where(mine, 0)) * mine.unsqueeze(-1)  # [s, b, h]
        return (
            reduce_scatter_to(partial, self.tp) if self.scatter else reduce_from(partial, self.tp)
        )


class PositionEmbedding(nn.Module):
    """A learned vector per position; under sequence parallelism a rank looks up its own part of the sequence."""

    def __init__(
        self,
        positions: int,
        hidden_size: int,
        tp: Axis,
        std: float,
        sequence_parallel: bool = False,
    ):
        super().__init__()
        self.tp = tp
        self.scatter = sequence_parallel and tp.size > 1
        grad_sum = ("tp",) if self.scatter else ()
        shape = (positions, hidden_size)
        self.shards = {"weight": Shard(shape, role="positions", std=std, grad_sum=grad_sum)}
        self.weight = nn.Parameter(torch.empty(positions, hidden_size))

    def forward(self, positions: Tensor) -> Tensor:  # [b, s] -> [s or s/tp, b, h]
        positions = own_tokens(positions.t(), self.tp, self.scatter)  # [s or s/tp, b]
        return rows(self.weight, positions)
