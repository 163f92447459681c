"""The mesh of one rank of a world that does not exist: its axes and links follow from the layout, without any process
group, and nothing is carried. The rank's program runs in one process, on tensors without memory (the meta device), and
a log notes what it asks of the world.

What a rank would learn from the others is said where it asks (`told.py`).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.config.layout import Layout
from megascratch.parallel.axis import Links
from megascratch.parallel.control import Control
from megascratch.parallel.lines import RankLine
from megascratch.parallel.mesh import AXES, Mesh
from megascratch.parallel.traffic import TrafficLog
from megascratch.parallel.transport import Transport, Work

Carry = Callable[..., object]
"""Called with the tensors that a communication reads and writes."""


class _Done:
    """A communication that has ended.

    Args:
        told: whether the library says so before it is awaited.
    """

    def __init__(self, told: bool = True):
        self.told = told

    def wait(self) -> None:
        """Returns at once."""

    def is_completed(self) -> bool:
        return self.told


class ImaginedTransport(Transport):
    """Carries nothing; every communication has ended when it starts.

    Args:
        gloo: whether it stands for gloo, whose collectives are made of messages and need buffers; else for NCCL.
        carry: called with the tensors of each communication.
    """

    def __init__(self, gloo: bool, carry: Carry):
        self.needs_host_memory = gloo
        self.carry = carry

    def all_reduce(self, x: Tensor, op: dist.ReduceOp.RedOpType) -> Work:
        return self._carried(x)

    def all_gather(self, out: Tensor, x: Tensor) -> Work:
        return self._carried(out, x)

    def reduce_scatter(self, out: Tensor, x: Tensor) -> Work:
        return self._carried(out, x)

    def exchange(self, out: Tensor, x: Tensor) -> Work:
        return self._carried(out, x)

    def send(self, x: Tensor, target: int) -> Work:
        self.carry(x)
        return _Done(told=not self.needs_host_memory)  # gloo does not report this for sends

    def receive(self, x: Tensor, source: int) -> Work:
        return self._carried(x)

    def shift(self, out: Tensor, x: Tensor, target: int, source: int, ranks: int) -> Work:
        return self._carried(out, x)

    def _carried(self, *tensors: Tensor) -> Work:
        self.carry(*tensors)
        return _Done()

    @property
    def device(self) -> torch.device:
        return torch.device("meta")

    def close(self) -> None:
        """Frees nothing."""

    def carried_by(self, device: torch.device) -> torch.device:
        """Tensors without memory stand for those of the target's own memory, so none is staged."""
        return device


def _left_alone(*tensors: Tensor) -> None:
    """Does nothing with the tensors of a communication."""


class ImaginedGroups:
    """The group maker of one rank whose groups carry nothing.

    Args:
        gloo: whether they stand for those of gloo; else for NCCL's.
        carry: called with the tensors of each communication.
    """

    def __init__(self, rank: int, world: int, gloo: bool, carry: Carry):
        self.rank = rank
        self.world = world
        self.needs_host_memory = gloo
        self.transport = ImaginedTransport(gloo, carry)

    def line(self, line: RankLine) -> Transport | None:
        return self.transport if len(line.mine) > 1 else None

    def everyone(self) -> Transport | None:
        """NCCL's group of all ranks; gloo has none."""
        return None if self.needs_host_memory else self.transport

    def host(self, name: str, ranks: tuple[int, ...]) -> Transport:
        return self.transport


def imagined_mesh(
    layout: Layout, rank: int, gloo: bool, log: TrafficLog, carry: Carry = _left_alone
) -> Mesh:
    """The mesh of `rank`, of which every communication is noted in the log. No rank answers on its control plane, which
    is that of a single process.

    Args:
        gloo: whether gloo would carry the tensors; else NCCL does.
        carry: called with the tensors of each communication.

    Raises: ValueError if the layout has no such rank.
    """
    if not 0 <= rank < layout.world:
        raise ValueError(f"rank ({rank}) must be from 0 to {layout.world - 1}")
    mesh = Mesh.build(layout, "meta", ImaginedGroups(rank, layout.world, gloo, carry))
    return noted(replace(mesh, control=Control.alone()), log)


def noted(mesh: Mesh, log: TrafficLog) -> Mesh:
    """The same mesh, of which every communication is noted in the log."""
    axes = {}
    for name in (*AXES, "embedding"):
        axis = getattr(mesh, name)
        along = tuple(replace(part, log=log) for part in axis.along)
        axes[name] = replace(axis, along=along, log=log)
    links = None
    if mesh.links is not None:
        links = Links(**{name: replace(link, log=log) for name, link in vars(mesh.links).items()})
    return replace(mesh, links=links, **axes)
