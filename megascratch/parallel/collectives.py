"""Collectives over an `Axis`: plain ones (all-reduce, all-gather, reduce-scatter), and conjugate pairs for autograd.

    forward              backward             used by
    copy                 all_reduce           input of a column-parallel layer
    all_reduce           copy                 output of a row-parallel layer
    all_gather(dim)      reduce_scatter(dim)  sequence parallel: sequence -> full
    reduce_scatter(dim)  all_gather(dim)      sequence parallel: full -> sequence

(f and g of Shoeybi et al. 2019, arXiv 1909.08053, section 3; the sequence pairs of Korthikanti et al. 2022,
arXiv 2205.05198, section 4.2.) On an axis of size 1 everything returns its input. On an axis that joins others, an
all-reduce or all-gather is done, along one after the other, when it is started. Tensors of a CPU go over gloo
(`gloo.py`), those of a device over NCCL, or through host memory where the group has only gloo.
"""

import pickle
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.parallel import gloo
from megascratch.parallel.axis import Axis
from megascratch.parallel.host_staging import needs_host_staging
from megascratch.parallel.pending import Pending

T = TypeVar("T")


def start_all_reduce(
    x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> Pending:
    """Starts a sum (or `op`) of x over the axis, in place."""
    if axis.size == 1:
        return Pending("all_reduce", axis, None, x)
    if axis.along:
        for part in axis.along:
            all_reduce(x, part, op)
        return Pending("all_reduce", axis, None, x)
    if needs_host_staging(x, axis.transport):
        return copied_to_device(start_all_reduce(x.cpu(), axis, op), x)
    if _over_gloo(axis):
        return gloo.start_all_reduce(x, axis, op)
    return Pending.start("all_reduce", axis, x, lambda group: group.all_reduce(x, op))


def start_all_gather(x: Tensor, axis: Axis, out: Tensor | None = None) -> Pending:
    """Starts an all-gather: [n, ...] -> [axis.size * n, ...], the shards of all ranks in rank order along dim 0."""
    if axis.size == 1:
        return Pending("all_gather", axis, None, x if out is None else out.copy_(x))
    if axis.along:
        for part in axis.along:
            x = all_gather(x, part)
        return Pending("all_gather", axis, None, x if out is None else out.copy_(x))
    x = x.contiguous()
    if out is None:
        out = x.new_empty((axis.size * x.shape[0], *x.shape[1:]))
    if needs_host_staging(x, axis.transport):
        return copied_to_device(start_all_gather(x.cpu(), axis), out)
    if _over_gloo(axis):
        return gloo.start_all_gather(x, axis, out)
    return Pending.start("all_gather", axis, out, lambda group: group.all_gather(out, x))


def start_reduce_scatter(x: Tensor, axis: Axis, out: Tensor | None = None) -> Pending:
    """Starts a reduce-scatter: [axis.size * n, ...] -> [n, ...], this rank's shard of the sum along dim 0."""
    if axis.size == 1:
        return Pending("reduce_scatter", axis, None, x if out is None else out.copy_(x))
    x = x.contiguous()
    if out is None:
        out = x.new_empty((x.shape[0] // axis.size, *x.shape[1:]))
    if needs_host_staging(x, axis.transport):
        return copied_to_device(start_reduce_scatter(x.cpu(), axis), out)
    if _over_gloo(axis):
        return gloo.start_reduce_scatter(x, axis, out)
    return Pending.start("reduce_scatter", axis, out, lambda group: group.reduce_scatter(out, x))


def _over_gloo(axis: Axis) -> bool:
    return axis.transport is not None and axis.transport.needs_host_memory


def copied_to_device(pending: Pending, out: Tensor) -> Pending:
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
    shard = start_reduce_scatter(x.movedim(dim, 0), axis).wait()
    return shard.movedim(0, dim)


def all_gather_objects(item: T, axis: Axis) -> list[T]:
    """One Python object from every rank, in rank order; for set-up, not for the training step."""
    if axis.size == 1:
        return [item]
    if axis.along:
        gathered = [item]
        for part in axis.along:
            gathered = list(chain.from_iterable(all_gather_objects(gathered, part)))
        return gathered
    assert axis.transport is not None
    device = axis.transport.device
    mine = torch.frombuffer(bytearray(pickle.dumps(item)), dtype=torch.uint8)
    sizes = all_gather(torch.tensor([len(mine)], device=device), axis).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine
    together = all_gather(padded.view(1, -1), axis).cpu()  # [size, longest]
    items: list[T] = []
    for row, size in zip(together, sizes, strict=True):
        items.append(pickle.loads(row[:size].numpy().tobytes()))
    return items


def barrier(axis: Axis) -> None:
    """Returns when every rank of the axis has arrived."""
    for part in axis.along or (axis,):
        if part.transport is not None:
            all_reduce(torch.zeros(1, device=part.transport.device), part).item()


# ---- conjugate pairs -------------------------------------------------------------------------------------------

Op = Callable[[Tensor, Axis], Tensor]


class _Pair(torch.autograd.Function):
    """An autograd function with one collective in the forward and its conjugate in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, forward_op: Op, backward_op: Op) -> Tensor:
        ctx.axis = axis
        ctx.backward_op = backward_op
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
