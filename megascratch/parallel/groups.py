"""Makes the process groups of one rank: `GlooGroups` and `NcclGroups`.

A rank makes groups for its own lines only (`parallel/lines.py`), so what it needs depends on the lengths of its lines,
not on the size of the world. All ranks make them in the same order of names, so that no two wait for each other in a
circle.

    gloo   one group per line, which finds its members in the store under the axis' name and the line's first rank
    NCCL   one split of the communicator of all ranks per axis, in which each line is a colour
    host   the control plane's groups (`parallel/control.py`), of gloo in both cases

A `GroupMaker` may also count what is asked of it, or give transports that carry nothing: then one rank of a large world
starts without the others.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist

from megascratch.parallel.lines import RankLine
from megascratch.parallel.pending import named
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.parallel.transport import ProcessGroupTransport, Transport


@dataclass(frozen=True)
class Timeouts:
    """How long a rank waits for others."""

    start: timedelta  # at the rendezvous
    load: timedelta  # on the control plane: to load, to save, to agree
    step: timedelta  # in a collective of a training step

    @classmethod
    def equal(cls, timeout: timedelta) -> "Timeouts":
        return cls(timeout, timeout, timeout)


class GroupMaker(Protocol):
    """Makes the transports of one rank. `Mesh.build` calls it for the same names in the same order on all ranks."""

    rank: int
    world: int
    needs_host_memory: bool
    """Whether the transports of the axes only carry tensors in host memory."""

    def line(self, line: RankLine) -> Transport | None:
        """The transport of the rank's line of an axis; None if the rank is alone on it. Names are unique."""

    def everyone(self) -> Transport | None:
        """The transport among all ranks; None if there is none, and sums are made along one line after the other."""

    def host(self, name: str, ranks: tuple[int, ...]) -> Transport:
        """A transport of tensors in host memory among a few ranks, for the control plane; `name` and the first of
        `ranks` together are unique."""


class GlooGroups:
    """Groups of gloo, without torch's default group.

    Args:
        rendezvous: group members find each other's addresses in its store, which no other `GlooGroups` uses.
    """

    needs_host_memory = True

    def __init__(self, rendezvous: Rendezvous, timeouts: Timeouts):
        self.store = rendezvous.store
        self.rank = rendezvous.rank
        self.world = rendezvous.world
        self.timeouts = timeouts
        self._device: object | None = None

    def line(self, line: RankLine) -> Transport | None:
        if len(line.mine) == 1:
            return None
        place = line.mine.index(self.rank)
        size = len(line.mine)
        with named("the connection", line.name, place, size):
            store = self._members(line.name, line.mine)
            group = dist.ProcessGroupGloo(store, place, size, self.timeouts.step)
        return _transport(group)

    def everyone(self) -> None:
        return None

    def host(self, name: str, ranks: tuple[int, ...]) -> Transport:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [self._shared_device()]
        options._timeout = self.timeouts.load
        with named("the connection", name, self.rank, self.world):
            store = self._members(name, ranks)
            group = dist.ProcessGroupGloo(store, ranks.index(self.rank), len(ranks), options)
        return _transport(group)

    def _members(self, name: str, ranks: tuple[int, ...]) -> dist.Store:
        return dist.PrefixStore(f"group {name} {ranks[0]}", self.store)

    def _shared_device(self) -> object:
        """One listening socket and one thread for all groups of the control plane, which move few bytes."""
        if self._device is None:
            interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
            if interface:
                self._device = dist.ProcessGroupGloo.create_device(interface=interface)
            else:
                self._device = dist.ProcessGroupGloo.create_default_device()
        return self._device


def _transport(group: object) -> Transport:
    return ProcessGroupTransport(cast(dist.ProcessGroup, group), needs_host_memory=True)


class NcclGroups:
    """Groups of NCCL, split off torch's default group, which must be initialised with this rank's device."""

    needs_host_memory = False

    def __init__(self, rendezvous: Rendezvous, timeouts: Timeouts):
        self.rank = rendezvous.rank
        self.world = rendezvous.world
        self.timeouts = timeouts
        self._gloo = GlooGroups(rendezvous, timeouts)

    def line(self, line: RankLine) -> Transport | None:
        """All ranks take part in the split, those without a line too."""
        lines = [ranks for ranks in line.every() if len(ranks) > 1]
        if not lines:
            return None
        group = dist.split_group(
            split_ranks=lines, timeout=self.timeouts.step, group_desc=line.name
        )
        if len(line.mine) == 1:
            return None
        assert group is not None
        return ProcessGroupTransport(group, needs_host_memory=False)

    def everyone(self) -> Transport:
        assert dist.group.WORLD is not None
        return ProcessGroupTransport(dist.group.WORLD, needs_host_memory=False)

    def host(self, name: str, ranks: tuple[int, ...]) -> Transport:
        return self._gloo.host(name, ranks)


def start(
    backend: str, device: torch.device, rendezvous: Rendezvous | None, timeouts: Timeouts
) -> GroupMaker | None:
    """The group maker of a backend, "gloo" or "nccl"; None without a rendezvous (a single process). With NCCL it first
    makes torch's default group of all ranks."""
    if rendezvous is None:
        return None
    if backend != "gloo":
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("default", rendezvous.store),
            rank=rendezvous.rank,
            world_size=rendezvous.world,
            timeout=timeouts.step,
            device_id=device,
        )
    return maker_of(backend, rendezvous, timeouts)


def maker_of(backend: str, rendezvous: Rendezvous, timeouts: Timeouts) -> GroupMaker:
    """The group maker of a backend; with NCCL there must be a default group."""
    kind = GlooGroups if backend == "gloo" else NcclGroups
    return kind(rendezvous, timeouts)


def stop() -> None:
    """Destroys torch's default group, if there is one. Groups of gloo end with their last reference."""
    if dist.is_initialized():
        dist.destroy_process_group()
