"""Collectives in which every rank gets something else from every other: all-to-all, and a shift around a ring."""

import torch
from torch import Tensor

from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import copied_to_device
from megascratch.parallel.host_staging import needs_host_staging
from megascratch.parallel.pending import Pending


def start_all_to_all(x: Tensor, axis: Axis) -> Pending:
    """Starts an exchange: part i of x [axis.size * n, ...] goes to rank i, whose part for this rank arrives as part i
    of the result. Its own conjugate."""
    if axis.size == 1:
        return Pending("all_to_all", axis, None, x)
    x = x.contiguous()
    if needs_host_staging(x, axis.transport):
        return copied_to_device(start_all_to_all(x.cpu(), axis), torch.empty_like(x))
    out = torch.empty_like(x)
    return Pending.start(
        "all_to_all", axis, out, lambda group: group.exchange(out.view(-1), x.view(-1))
    )


def all_to_all(x: Tensor, axis: Axis) -> Tensor:
    return start_all_to_all(x, axis).wait()


def start_shift(x: Tensor, axis: Axis, by: int = 1) -> Pending:
    """Starts sending x to the rank that is `by` places further around the ring. The result is what the rank that is as
    many places before this one sends, which has the same shape."""
    if by % axis.size == 0:
        return Pending("shift", axis, None, x)
    x = x.contiguous()
    if needs_host_staging(x, axis.transport):
        return copied_to_device(start_shift(x.cpu(), axis, by), torch.empty_like(x))
    out = torch.empty_like(x)
    target = (axis.rank + by) % axis.size
    source = (axis.rank - by) % axis.size
    return Pending.start(
        "shift", axis, out, lambda group: group.shift(out, x, target, source, axis.size)
    )
