"""Collectives over an `Axis`: plain ones (all-reduce, all-gather, reduce-scatter), and conjugate pairs for autograd.

    forward              backward             used by
    copy                 all_reduce           input of a column-parallel layer
    all_reduce           copy                 output of a row-parallel layer
    all_gather(dim)      reduce_scatter(dim)  sequence parallel: sequence -> full
    reduce_scatter(dim)  all_gather(dim)      sequence parallel: full -> sequence

(f and g of Shoeybi et al. 2019, arXiv 1909.08053, section 3; the sequence pairs of Korthikanti et al. 2022,
arXiv 2205.05198, section 4.2.) On an axis of size 1 everything returns its input.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.parallel.host_staging import needs_host_staging
from megascratch.parallel.mesh import Axis
from megascratch.runtime.comm_timer import blocked
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import next_number, waiting

T = TypeVar("T")

# torch 2.13 renamed the single-tensor forms and warns about the old names; 2.11 has only those.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class CommunicationError(RuntimeError):
    """A collective or transfer failed or timed out; the text names the operation, the axis and the rank."""


@contextmanager
def named(operation: str, axis: str, rank: int, size: int) -> Iterator[None]:
    """Turns an error of a communication inside the block into a CommunicationError that names it (law 11)."""
    try:
        yield
    except CommunicationError:
        raise
    except RuntimeError as error:
        raise CommunicationError(f"{operation} over {axis} failed on rank {rank} of {size}: {reason(error)}") from error


def reason(error: RuntimeError) -> str:
    """The first line of the library's error, or, if it only follows from another rank's end, a hint to that rank."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "closed by peer" in text or "reset by peer" in text:
        return "another rank has ended; see the message of that rank"
    return text


class Work(Protocol):
    """A communication under way: the part of torch's `Work` that is used here."""

    def wait(self) -> object:
        """Waits until it has ended."""

    def is_completed(self) -> bool:
        """Whether `wait` would return at once; gloo does not report this for sends."""


class Pending:
    """A collective under way. `wait` returns its result; `finish`, if given, is called once the communication ends."""

    def __init__(
        self,
        operation: str,
        axis: Axis,
        work: Work | None,
        result: Tensor,
        finish: Callable[[], object] | None = None,
    ):
        self.operation = operation
        self.axis = axis
        self.work = work
        self.result = result
        self.finish = finish
        self.number = 0 if work is None else next_number(axis.name)

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self.work is None or self.work.is_completed()

    def wait(self) -> Tensor:
        if self.work is not None:
            fault_point("collective.wait")
            axis = self.axis
            with (
                named(self.operation, axis.name, axis.rank, axis.size),
                waiting(f"{self.operation} over {axis.name}", self.number, axis.ranks),
                blocked(axis.waits),
            ):
                self.work.wait()
            if self.finish is not None:
                self.finish()
            self.work = self.finish = None
        return self.result


def _start(operation: str, axis: Axis, result: Tensor, launch: Callable[..., Work | None]) -> Pending:
    fault_point("collective.start")
    with named(operation, axis.name, axis.rank, axis.size):
        return Pending(operation, axis, launch(group=axis.group, async_op=True), result)


def _copied_to_device(pending: Pending, out: Tensor) -> Pending:
    """A collective in host memory whose result is then copied into `out`, on a device."""
    host = pending.result
    finish = pending.finish

    def copy_to_device() -> None:
        if finish is not None:
            finish()
        out.copy_(host)

    pending.result = out
    pending.finish = copy_to_device
    return pending


# gloo's own collectives are rings: a message waits at one rank after the other. Where that waiting takes most of the
# time (benchmarks/bench_collectives.py), each rank instead sends its part to every other rank at once, and adds up what
# it received in rank order.
_EXCHANGED_SUM = 1 << 16  # largest all-reduce in bytes: the exchange sends more bytes than the ring
_EXCHANGED_GATHER = 1 << 22  # largest result of an all-gather in bytes: its input is copied for each rank
_REDUCTIONS: dict[dist.ReduceOp.RedOpType, Callable[..., Tensor]] = {
    dist.ReduceOp.SUM: torch.sum,
    dist.ReduceOp.MAX: torch.amax,
    dist.ReduceOp.MIN: torch.amin,
}


def _is_exchanged(x: Tensor, most: int) -> bool:
    """Whether a tensor is in host memory and small enough (`most` bytes) to be sent to all ranks at once."""
    return x.device.type == "cpu" and x.numel() * x.element_size() <= most


def _start_exchange(
    operation: str, axis: Axis, result: Tensor, parts: Tensor, reduce: Callable[..., Tensor] | None = None
) -> Pending:
    """Sends part i of `parts` to rank i. The result is the received parts, reduced over the ranks by `reduce` if it is
    given."""
    arrived = result if reduce is None else torch.empty_like(parts)
    pending = _start(
        operation, axis, result, lambda **how: dist.all_to_all_single(arrived.view(-1), parts.view(-1), **how)
    )
    if reduce is not None:
        pending.finish = lambda: result.copy_(reduce(arrived.view(axis.size, *result.shape), 0))
    return pending


def _for_each_rank(x: Tensor, axis: Axis) -> Tensor:
    return x.expand(axis.size, *x.shape).contiguous()


def start_all_reduce(x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Pending:
    """Starts a sum (or `op`) of x over the axis, in place."""
    if axis.size == 1:
        return Pending("all_reduce", axis, None, x)
    if needs_host_staging(x, axis.group):
        return _copied_to_device(start_all_reduce(x.cpu(), axis, op), x)
    if _is_exchanged(x, _EXCHANGED_SUM):
        return _start_exchange("all_reduce", axis, x, _for_each_rank(x, axis), _REDUCTIONS[op])
    return _start("all_reduce", axis, x, lambda **how: dist.all_reduce(x, op, **how))


def start_all_gather(x: Tensor, axis: Axis, out: Tensor | None = None) -> Pending:
    """Starts an all-gather: [n, ...] -> [axis.size * n, ...], the shards of all ranks in rank order along dim 0."""
    if axis.size == 1:
        return Pending("all_gather", axis, None, x if out is None else out.copy_(x))
    x = x.contiguous()
    out = x.new_empty((axis.size * x.shape[0], *x.shape[1:])) if out is None else out
    if needs_host_staging(x, axis.group):
        return _copied_to_device(start_all_gather(x.cpu(), axis), out)
    if _is_exchanged(out, _EXCHANGED_GATHER):
        return _start_exchange("all_gather", axis, out, _for_each_rank(x, axis))
    if x.device.type == "cpu":
        return _start("all_gather", axis, out, lambda **how: _DirectGather(x, axis, out))
    return _start("all_gather", axis, out, lambda **how: _all_gather_single(out, x, **how))


class _DirectGather:
    """A large all-gather by point-to-point messages: every rank receives each shard directly into its place in `out`.
    gloo's own all-gather receives into a buffer of its own and copies from there."""

    def __init__(self, x: Tensor, axis: Axis, out: Tensor):
        shards = out.chunk(axis.size)
        own = shards[axis.rank]
        if own.data_ptr() != x.data_ptr():
            own.copy_(x)
        self.works: list[dist.Work | None] = []
        for distance in range(1, axis.size):
            target = (axis.rank + distance) % axis.size
            source = (axis.rank - distance) % axis.size
            self.works.append(dist.irecv(shards[source], axis.ranks[source], group=axis.group))
            self.works.append(dist.isend(own, axis.ranks[target], group=axis.group))

    def wait(self) -> None:
        for work in self.works:
            if work is not None:
                work.wait()

    def is_completed(self) -> bool:
        return all(work is None or work.is_completed() for work in self.works)


def start_reduce_scatter(x: Tensor, axis: Axis, out: Tensor | None = None) -> Pending:
    """Starts a reduce-scatter: [axis.size * n, ...] -> [n, ...], this rank's shard of the sum along dim 0."""
    if axis.size == 1:
        return Pending("reduce_scatter", axis, None, x if out is None else out.copy_(x))
    x = x.contiguous()
    out = x.new_empty((x.shape[0] // axis.size, *x.shape[1:])) if out is None else out
    if needs_host_staging(x, axis.group):
        return _copied_to_device(start_reduce_scatter(x.cpu(), axis), out)
    if x.device.type == "cpu":
        return _start_exchange("reduce_scatter", axis, out, x, torch.sum)
    return _start("reduce_scatter", axis, out, lambda **how: _reduce_scatter_single(out, x, **how))


def all_reduce(x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    return start_all_reduce(x, axis, op).wait()


def all_gather(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """The shards of all ranks in rank order along `dim`."""
    if axis.size == 1:
        return x
    full = start_all_gather(x.movedim(dim, 0), axis).wait()
    return full.movedim(0, dim)


def reduce_scatter(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """This rank's shard, along `dim`, of the sum over the axis."""
    if axis.size == 1:
        return x
    return start_reduce_scatter(x.movedim(dim, 0), axis).wait().movedim(0, dim)


def all_gather_objects(item: T, axis: Axis) -> list[T]:
    """One Python object from every rank, in rank order; for set-up, not for the training step."""
    if axis.size == 1:
        return [item]
    items: list[Any] = [None] * axis.size
    with (
        named("all_gather_objects", axis.name, axis.rank, axis.size),
        waiting(f"all_gather_objects over {axis.name}", next_number(axis.name), axis.ranks),
    ):
        dist.all_gather_object(items, item, group=axis.group)
    return items


def barrier(axis: Axis) -> None:
    """Returns when every rank of the axis has arrived."""
    all_gather_objects(None, axis)


# ---- conjugate pairs -------------------------------------------------------------------------------------------

Op = Callable[[Tensor, Axis], Tensor]


class _Pair(torch.autograd.Function):
    """An autograd function with one collective in the forward and its conjugate in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, forward_op: Op, backward_op: Op) -> Tensor:
        ctx.axis, ctx.backward_op = axis, backward_op
        return forward_op(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.backward_op(grad, ctx.axis), None, None, None


def _copy(x: Tensor, axis: Axis) -> Tensor:
    return x.view_as(x)


def _sum(x: Tensor, axis: Axis) -> Tensor:
    return all_reduce(x.clone(memory_format=torch.contiguous_format), axis)


def _paired(x: Tensor, axis: Axis, forward_op: Op, backward_op: Op) -> Tensor:
    apply = _outside_graphs if torch.compiler.is_compiling() else _Pair.apply
    return cast(Tensor, apply(x, axis, forward_op, backward_op))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _outside_graphs(x: Tensor, axis: Axis, forward_op: Op, backward_op: Op) -> Tensor:
    """Keeps communication outside compiled graphs."""
    return cast(Tensor, _Pair.apply(x, axis, forward_op, backward_op))  # type: ignore[no-untyped-call]


def copy_to(x: Tensor, axis: Axis) -> Tensor:
    """Identity forward, all-reduce backward."""
    return x if axis.size == 1 else _paired(x, axis, _copy, _sum)


def reduce_from(x: Tensor, axis: Axis) -> Tensor:
    """All-reduce forward, identity backward."""
    return x if axis.size == 1 else _paired(x, axis, _sum, _copy)


def gather_from(x: Tensor, axis: Axis) -> Tensor:
    """All-gather along dim 0 forward, reduce-scatter backward."""
    return x if axis.size == 1 else _paired(x, axis, all_gather, reduce_scatter)


def reduce_scatter_to(x: Tensor, axis: Axis) -> Tensor:
    """Reduce-scatter along dim 0 forward, all-gather backward."""
    return x if axis.size == 1 else _paired(x, axis, reduce_scatter, all_gather)
