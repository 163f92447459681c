"""The device mesh of this rank: its position on every parallel axis and the transports to the other ranks.

A layer gets the one `Axis` that it uses; code that assembles layers gets the `Mesh`. An axis of size 1 has no
transport, and every collective on it returns its input, so no layer needs to check whether it is distributed.
"""

from dataclasses import dataclass, field

import torch

from megascratch.config.errors import UserError
from megascratch.config.layout import Layout, View
from megascratch.parallel.axis import Axis, Link, Links
from megascratch.parallel.control import Control
from megascratch.parallel.grid import Position
from megascratch.parallel.groups import GroupMaker
from megascratch.parallel.lines import RankLine, embedding_line, line_of, link_lines
from megascratch.parallel.transport import Transport
from megascratch.runtime.timers import CommTimer

# The axes of a mesh: a view, and its axes that are joined.
AXES = {
    "tp": ("dense", ("tp",)),
    "cp": ("dense", ("cp",)),
    "cp_heads": ("context", ("cp_heads",)),
    "cp_ring": ("context", ("cp_ring",)),
    "data": ("dense", ("dp", "cp")),
    "pp": ("dense", ("pp",)),
    "shard": ("replicas", ("shard", "cp")),
    "replica": ("replicas", ("replica",)),
    "etp": ("expert", ("etp",)),
    "ep": ("expert", ("ep",)),
    "edp": ("expert", ("edp",)),
    "dp": ("dense", ("dp",)),
    "world": ("dense", ("pp", "dp", "cp", "tp")),
}
# Those that have a group of their own, in the order in which the groups are made.
_OWN_GROUP = (
    "tp",
    "cp",
    "cp_heads",
    "cp_ring",
    "data",
    "pp",
    "shard",
    "replica",
    "etp",
    "ep",
    "edp",
)


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
    cp_heads: Axis  # of the context ranks, neighbours that exchange heads for tokens
    cp_ring: Axis  # of the context ranks, those with the same place among such neighbours
    data: Axis  # dp and cp together: the ranks that hold the same dense weights and sum their gradients
    shard: Axis  # of the data ranks, those that share one copy of what hybrid sharding shards
    replica: Axis  # the ranks with the same part of such a copy; shard x replica = data
    ep: Axis
    etp: Axis
    edp: Axis  # the data ranks of the expert view
    embedding: Axis  # first and last stage: the two copies of a tied embedding; size 1 on the stages between
    world: Axis
    control: Control  # of all ranks, for what is not a step's; only the main thread uses it
    links: Links | None = field(default=None, repr=False)
    waits: CommTimer | None = field(default=None, repr=False)  # one timer for all axes and links
    maker: GroupMaker | None = field(default=None, repr=False)  # None: a single process

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> "Mesh":
        """A mesh of one process, without communication."""
        axes = {name: Axis.alone(name) for name in (*AXES, "embedding")}
        return cls(
            Layout(),
            0,
            torch.device(device),
            links=None,
            waits=None,
            maker=None,
            control=Control.alone(),
            **axes,
        )

    @classmethod
    def build(
        cls,
        layout: Layout,
        device: torch.device | str = "cpu",
        maker: GroupMaker | None = None,
        tied: bool = True,
    ) -> "Mesh":
        """Makes the process groups of this rank; called by all ranks.

        Args:
            maker: makes them; None for a single process.
            tied: whether first and last stage may hold copies of one weight, so that an embedding axis is needed.

        Raises: UserError if the number of ranks is not the product of the layout.
        """
        world = 1 if maker is None else maker.world
        if world != layout.world:
            raise UserError(
                f"world size ({world}) must equal the product of the layout {layout.sizes('dense')}: start "
                f"{layout.world} processes"
            )
        if maker is None or world == 1:
            return cls.alone(device)
        device = torch.device(device)
        waits = CommTimer(torch.device("cpu") if maker.needs_host_memory else device)
        axes = _Axes(layout, maker, waits)
        return cls(
            layout,
            maker.rank,
            device,
            **axes.of_layout(tied),
            links=axes.links() if layout.pp > 1 else None,
            control=Control.build(maker, "control", waits),
            waits=waits,
            maker=maker,
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
        """Frees every group that was made for this mesh; it cannot be used afterwards."""
        transports = {getattr(self, name).transport for name in (*_OWN_GROUP, "embedding")}
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
        self.control.close()


class _Axes:
    """Makes the axes of one rank. Lines of the same ranks share one group: if two axes agree on one rank they agree on
    all, because an axis cuts the grid in the same way everywhere."""

    def __init__(self, layout: Layout, maker: GroupMaker, waits: CommTimer):
        self.layout = layout
        self.maker = maker
        self.waits = waits
        self.made: dict[tuple[int, ...], Transport | None] = {}

    def of_layout(self, tied: bool) -> dict[str, Axis]:
        """All axes by name; their groups are made in the same order on all ranks."""
        made = {name: self._axis(self._line(name)) for name in _OWN_GROUP}
        # no step sums along dp alone, so that it needs no group of its own
        made["dp"] = self._shared("dp", self.made.get(self._line("dp").mine))
        if tied:
            made["embedding"] = self._axis(embedding_line(self.layout, self.maker.rank))
        else:
            made["embedding"] = Axis.alone("embedding", self.maker.rank)
        everyone = self.maker.everyone()
        along = (made["tp"], made["data"], made["pp"]) if everyone is None else ()
        made["world"] = self._shared("world", everyone, along)
        return made

    def links(self) -> Links:
        """The links of this rank's ring of stages."""
        made: dict[str, Link] = {}
        rank = self.maker.rank
        pipeline = self._line("pp").mine
        for line, link in link_lines(self.layout, rank):
            transport = self.maker.line(line)
            if link is None or transport is None:
                continue
            source = pipeline[link.source]
            side = "out" if rank == source else "in"
            target = pipeline[link.target]
            made[f"{link.direction}_{side}"] = Link(source, target, transport, self.waits)
        return Links(**made)

    def _line(self, name: str) -> RankLine:
        return line_of(self.layout, self.maker.rank, name, *AXES[name])

    def _axis(self, line: RankLine) -> Axis:
        """The axis of a line, with the group of these ranks if there is one already."""
        ranks = line.mine
        transport = self.made.get(ranks) if len(ranks) > 1 else None
        if transport is None:
            transport = self.maker.line(line)
        self.made[ranks] = transport
        return Axis(
            line.name, len(ranks), ranks.index(self.maker.rank), ranks, transport, waits=self.waits
        )

    def _shared(self, name: str, transport: Transport | None, along: tuple[Axis, ...] = ()) -> Axis:
        """An axis for which no group is made."""
        ranks = self._line(name).mine
        place = ranks.index(self.maker.rank)
        return Axis(name, len(ranks), place, ranks, transport, along, self.waits)


def second_control(mesh: Mesh) -> Control:
    """A control plane of all ranks that another thread may use; called by all ranks."""
    if mesh.maker is None:
        return Control.alone()
    return Control.build(mesh.maker, "second control")
