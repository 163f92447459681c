"""Carries tensors among the ranks of one group. Axes and links hold a `Transport` and know no process group.

Only `ProcessGroupTransport` uses torch's process groups. Another transport may carry nothing and only note what is
asked of it: then one rank of a large world runs without the others.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.runtime.launches import Ending


class Work(Protocol):
    """A communication under way: the part of torch's `Work` that is used here."""

    def wait(self) -> object:
        """Waits until it has ended."""

    def is_completed(self) -> bool:
        """Whether `wait` would return at once; gloo does not report this for sends."""


class Transport(ABC):
    """Starts communications of one group. Ranks are numbers within the group. All tensors are contiguous."""

    needs_host_memory: bool
    """Whether it only carries tensors in host memory (gloo); those of a device are copied there before and after."""

    waits_for_end: bool = True
    """Whether the `wait` of a work returns when it has ended (gloo), and not at once (NCCL: the device waits)."""

    @abstractmethod
    def all_reduce(self, x: Tensor, op: dist.ReduceOp.RedOpType) -> Work:
        """Reduces x over the ranks, in place."""

    @abstractmethod
    def all_gather(self, out: Tensor, x: Tensor) -> Work:
        """x [n, ...] of every rank -> out [size * n, ...], in rank order."""

    @abstractmethod
    def reduce_scatter(self, out: Tensor, x: Tensor) -> Work:
        """The sum of x [size * n, ...] over the ranks -> this rank's part in out [n, ...]."""

    @abstractmethod
    def exchange(self, out: Tensor, x: Tensor) -> Work:
        """Part i of x [size * n] goes to rank i, whose part for this rank arrives as part i of out."""

    @abstractmethod
    def send(self, x: Tensor, target: int) -> Work:
        """Sends x to a rank."""

    @abstractmethod
    def receive(self, x: Tensor, source: int) -> Work:
        """Receives into x from a rank. Messages arrive in the order in which they were sent."""

    def shift(self, out: Tensor, x: Tensor, target: int, source: int, ranks: int) -> Work:
        """Sends x to one of the ranks and receives as much from another into out; all ranks of the group call it."""
        return BothWays(self.send(x, target), self.receive(out, source))

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of tensors that are made only to be sent."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the group holds; it cannot be used afterwards."""

    def mark(self, work: Work) -> Ending:
        """Tells from now on when a work has ended whose `wait` has just returned at once."""
        return work

    def carried_by(self, device: torch.device) -> torch.device:
        """The device from which tensors of `device` are sent."""
        return torch.device("cpu") if self.needs_host_memory else device


class StreamMark:
    """A place in the current stream of the device, which is reached when all work before it has ended. It keeps no
    tensor, as a work of NCCL does."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.event.record()

    def is_completed(self) -> bool:
        ended: bool = self.event.query()  # type: ignore[no-untyped-call]
        return ended


class BothWays:
    """A message out and a message in."""

    def __init__(self, outwards: Work, inwards: Work):
        self.outwards = outwards
        self.inwards = inwards

    def wait(self) -> None:
        self.inwards.wait()
        self.outwards.wait()

    def is_completed(self) -> bool:
        return self.inwards.is_completed()


class ProcessGroupTransport(Transport):
    """A process group of torch: of NCCL, or one of gloo that torch.distributed does not know; it has the same verbs."""

    def __init__(self, group: dist.ProcessGroup, needs_host_memory: bool):
        self.group = group
        self.needs_host_memory = needs_host_memory
        self.waits_for_end = needs_host_memory

    def all_reduce(self, x: Tensor, op: dist.ReduceOp.RedOpType) -> Work:
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp(op)
        return self.group.allreduce([x], options)

    def all_gather(self, out: Tensor, x: Tensor) -> Work:
        return self.group._allgather_base(out, x)

    def reduce_scatter(self, out: Tensor, x: Tensor) -> Work:
        return self.group._reduce_scatter_base(out, x, dist.ReduceScatterOptions())

    def exchange(self, out: Tensor, x: Tensor) -> Work:
        return self.group.alltoall_base(out, x, [], [])

    def send(self, x: Tensor, target: int) -> Work:
        return self.group.send([x], target, 0)

    def receive(self, x: Tensor, source: int) -> Work:
        return self.group.recv([x], source, 0)

    def shift(self, out: Tensor, x: Tensor, target: int, source: int, ranks: int) -> Work:
        if self.needs_host_memory:
            return super().shift(out, x, target, source, ranks)
        # NCCL runs messages one by one, so that ranks that all send first would wait for each other
        sent = [x.numel() if rank == target else 0 for rank in range(ranks)]
        received = [out.numel() if rank == source else 0 for rank in range(ranks)]
        return self.group.alltoall_base(out.view(-1), x.view(-1), received, sent)

    def mark(self, work: Work) -> Ending:
        return StreamMark()

    @property
    def device(self) -> torch.device:
        if self.needs_host_memory:
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def close(self) -> None:
        if isinstance(self.group, dist.ProcessGroup):
            dist.destroy_process_group(self.group)
        del self.group  # a group of gloo ends with its last reference
