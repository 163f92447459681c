"""The device mesh of this rank: its position on every parallel axis and the process groups. Only this file starts and
ends torch.distributed.

A layer gets the one `Axis` that it uses; code that assembles layers gets the `Mesh`. An axis of size 1 has no
transport, and every collective on it returns its input, so no layer needs to check whether it is distributed.
"""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from megascratch.config.errors import UserError
from megascratch.config.layout import Layout, View
from megascratch.parallel.axis import Axis, Link, Links
from megascratch.parallel.control import Control
from megascratch.parallel.grid import Grid, Position
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.parallel.transport import ProcessGroupTransport, Transport
from megascratch.runtime.timers import CommTimer

# The axes of a mesh in the order in which their groups are made: a view, and its axes that are joined.
_LINES = {
    "tp": ("dense", ("tp",)),
    "cp": ("dense", ("cp",)),
    "dp": ("dense", ("dp",)),
    "pp": ("dense", ("pp",)),
    "data": ("dense", ("dp", "cp")),
    "model": ("dense", ("pp", "tp")),
    "shard": ("replicas", ("shard", "cp")),
    "replica": ("replicas", ("replica",)),
    "etp": ("expert", ("etp",)),
    "ep": ("expert", ("ep",)),
    "edp": ("expert", ("edp",)),
}


@dataclass(frozen=True)
class Mesh:
    """This rank, its device, and its axis for each kind of parallelism, in all views of the layout."""

    layout: Layout
    rank: int
    device: torch.device
    tp: Axis
    pp: Axis
    dp: Axis
    cp: Axis
    data: Axis  # dp and cp together: the ranks that hold the same dense weights and sum their gradients
    shard: Axis  # of the data ranks, those that share one copy of what hybrid sharding shards
    replica: Axis  # the ranks with the same part of such a copy; shard x replica = data
    ep: Axis
    etp: Axis
    edp: Axis  # the data ranks of the expert view
    model: Axis  # tp and pp together: the ranks that hold one copy of the dense weights
    embedding: Axis  # first and last stage: the two copies of a tied embedding; size 1 on the stages between
    world: Axis
    control: Control  # of all ranks, for what is not a step's; only the main thread uses it
    links: Links | None = field(default=None, repr=False)
    waits: CommTimer | None = field(default=None, repr=False)  # one timer for all axes and links

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> "Mesh":
        """A mesh of one process, without communication."""
        axes = {name: Axis.alone(name) for name in (*_LINES, "embedding", "world")}
        return cls(
            Layout(),
            0,
            torch.device(device),
            links=None,
            waits=None,
            control=Control.alone(),
            **axes,
        )

    @classmethod
    def build(
        cls, layout: Layout, device: torch.device | str = "cpu", timeout: timedelta | None = None
    ) -> "Mesh":
        """Makes every process group of `layout`; called by all ranks of an initialised default group.

        Every rank makes all groups, in the same order, because torch numbers groups by the calls made so far.

        Raises: UserError if the number of ranks is not the product of the layout.
        """
        rank = 0
        world = 1
        if dist.is_initialized():
            rank = dist.get_rank()
            world = dist.get_world_size()
        if world != layout.world:
            raise UserError(
                f"world size ({world}) must equal the product of the layout {layout.sizes('dense')}: start "
                f"{layout.world} processes"
            )
        if world == 1:
            return cls.alone(device)
        assert dist.group.WORLD is not None
        everyone = ProcessGroupTransport(dist.group.WORLD)
        waits = CommTimer(everyone.carried_by(torch.device(device)))
        maker = _GroupMaker(rank, timeout, waits)
        axes = {}
        for name, (view, members) in _LINES.items():
            axes[name] = maker.axis(name, Grid(layout.sizes(view)).groups(*members))
        pipelines = Grid(layout.sizes("dense")).groups("pp")
        ends = [sorted({stages[0], stages[-1]}) for stages in pipelines]
        axes["embedding"] = maker.axis("embedding", ends)
        axes["world"] = Axis("world", world, rank, tuple(range(world)), everyone, waits)
        links = maker.links(pipelines) if layout.pp > 1 else None
        control = Control(axes["world"])
        return cls(
            layout, rank, torch.device(device), control=control, links=links, waits=waits, **axes
        )

    @property
    def position(self) -> Position:
        return Position(self.layout, self.rank)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def data_of(self, view: View) -> Axis:
        """The ranks that hold the same weights of a view and sum their gradients."""
        return self.edp if view == "expert" else self.data

    def model_axis(self, name: str) -> Axis:
        """The axis of that name, along which the ranks of one copy of the model differ."""
        return {"pp": self.pp, "tp": self.tp, "ep": self.ep, "etp": self.etp}[name]

    def close(self) -> None:
        """Destroys every group but the default one; the mesh cannot be used afterwards."""
        transports = {getattr(self, name).transport for name in (*_LINES, "embedding")}
        if self.links is not None:
            links = self.links
            for link in (
                links.forward_in,
                links.forward_out,
                links.backward_in,
                links.backward_out,
            ):
                transports.add(link.transport)
        for transport in transports - {None}:
            transport.close()


class _GroupMaker:
    """Makes groups in the same order on all ranks and keeps this rank's; equal lists of ranks share one group."""

    def __init__(self, rank: int, timeout: timedelta | None, waits: CommTimer):
        self.rank = rank
        self.timeout = timeout
        self.waits = waits
        self.made: dict[tuple[int, ...], Transport | None] = {}

    def axis(self, name: str, groups: list[list[int]]) -> Axis:
        """This rank's axis among `groups`; an axis of size 1 if none of them contains the rank."""
        mine = Axis.alone(name, self.rank)
        for ranks in map(tuple, groups):
            if len(ranks) == 1:
                continue
            if ranks not in self.made:
                self.made[ranks] = self._new(ranks, name)
            if self.rank in ranks:
                mine = Axis(
                    name, len(ranks), ranks.index(self.rank), ranks, self.made[ranks], self.waits
                )
        return mine

    def links(self, pipelines: list[list[int]]) -> Links:
        """The links of this rank's ring of stages."""
        made: dict[str, Link] = {}
        for stages in pipelines:
            for i, source in enumerate(stages):
                target = stages[(i + 1) % len(stages)]
                pair = tuple(sorted((source, target)))
                forward_transport = self._new(pair, "pp forward")
                backward_transport = self._new(pair, "pp backward")
                if forward_transport is None or backward_transport is None:
                    continue
                forward = Link(source, target, forward_transport, self.waits)
                backward = Link(target, source, backward_transport, self.waits)
                if self.rank == source:
                    made |= {"forward_out": forward, "backward_in": backward}
                if self.rank == target:
                    made |= {"forward_in": forward, "backward_out": backward}
        return Links(**made)

    def _new(self, ranks: tuple[int, ...], description: str) -> Transport | None:
        """None for a rank that is not among `ranks`, which must take part in the call anyway."""
        group = dist.new_group(list(ranks), timeout=self.timeout, group_desc=description)
        return ProcessGroupTransport(group) if self.rank in ranks else None


def start(backend: str, device: torch.device, rendezvous: Rendezvous | None) -> None:
    """Makes the default process group of the ranks of a rendezvous; does nothing without one (a single process)."""
    if rendezvous is None:
        return
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", rendezvous.store),
        rank=rendezvous.rank,
        world_size=rendezvous.world,
        timeout=rendezvous.timeout,
        device_id=device if backend == "nccl" else None,
    )


def second_control(mesh: Mesh, timeout: timedelta | None = None) -> Control:
    """A control plane of all ranks that another thread may use; called by all ranks."""
    world = mesh.world
    if world.size == 1:
        return Control.alone()
    group = dist.new_group(list(world.ranks), timeout=timeout, backend="gloo", group_desc="host")
    return Control(replace(world, transport=ProcessGroupTransport(group)))


def stop() -> None:
    """Destroys the default process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
