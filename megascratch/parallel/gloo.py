"""Collectives over gloo, which are made of messages in host memory where that is faster than gloo's own.

gloo's own collectives are rings: a message waits at one rank after the other. Where that waiting takes most of the time
(benchmarks/bench_collectives.py), each rank instead sends its part to every other rank at once, and adds up what it
received in rank order. Sizes are limits in bytes.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.parallel.axis import Axis
from megascratch.parallel.pending import Pending
from megascratch.parallel.transport import Transport, Work

EXCHANGED_SUM = 1 << 16  # largest all-reduce: the exchange sends more bytes than the ring
EXCHANGED_GATHER = 1 << 22  # largest result of an all-gather: its input is copied for each rank

_REDUCTIONS: dict[dist.ReduceOp.RedOpType, Callable[..., Tensor]] = {
    dist.ReduceOp.SUM: torch.sum,
    dist.ReduceOp.MAX: torch.amax,
    dist.ReduceOp.MIN: torch.amin,
}


def start_all_reduce(x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType) -> Pending:
    """Starts a sum (or `op`) of x over the axis, in place."""
    if x.nbytes <= EXCHANGED_SUM:
        return _start_exchange("all_reduce", axis, x, _for_each_rank(x, axis), _REDUCTIONS[op])
    return Pending.start("all_reduce", axis, x, lambda group: group.all_reduce(x, op))


def start_all_gather(x: Tensor, axis: Axis, out: Tensor) -> Pending:
    """Starts an all-gather of the contiguous x [n, ...] into out [axis.size * n, ...]."""
    if out.nbytes <= EXCHANGED_GATHER:
        return _start_exchange("all_gather", axis, out, _for_each_rank(x, axis))
    return Pending.start("all_gather", axis, out, lambda group: DirectGather(x, axis, out, group))


def start_reduce_scatter(x: Tensor, axis: Axis, out: Tensor) -> Pending:
    """Starts a reduce-scatter of the contiguous x [axis.size * n, ...] into out [n, ...]; always an exchange."""
    return _start_exchange("reduce_scatter", axis, out, x, torch.sum)


def _for_each_rank(x: Tensor, axis: Axis) -> Tensor:
    return x.expand(axis.size, *x.shape).contiguous()  # [size, ...]


def _start_exchange(
    operation: str,
    axis: Axis,
    result: Tensor,
    parts: Tensor,
    reduce: Callable[..., Tensor] | None = None,
) -> Pending:
    """Sends part i of `parts` to rank i. The result is the received parts, reduced over the ranks by `reduce` if it is
    given."""
    arrived = result if reduce is None else torch.empty_like(parts)
    pending = Pending.start(
        operation,
        axis,
        result,
        lambda group: group.exchange(arrived.view(-1), parts.view(-1)),
    )
    if reduce is not None:
        by_rank = arrived.view(axis.size, *result.shape)
        pending.finish = lambda: result.copy_(reduce(by_rank, 0))
    return pending


class DirectGather:
    """A large all-gather by point-to-point messages: every rank receives each shard directly into its place in `out`.
    gloo's own all-gather receives into a buffer of its own and copies from there."""

    def __init__(self, x: Tensor, axis: Axis, out: Tensor, group: Transport):
        shards = out.chunk(axis.size)
        own = shards[axis.rank]
        if own.data_ptr() != x.data_ptr():
            own.copy_(x)
        self.works: list[Work] = []
        for distance in range(1, axis.size):
            target = (axis.rank + distance) % axis.size
            source = (axis.rank - distance) % axis.size
            self.works.append(group.receive(shards[source], source))
            self.works.append(group.send(own, target))

    def wait(self) -> None:
        for work in self.works:
            work.wait()

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self.works)
