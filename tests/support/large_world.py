"""One rank of a world of any size, whose other ranks are made up."""

from collections.abc import Callable
from typing import Any

from megascratch.config.layout import Layout
from megascratch.parallel.axis import Axis
from megascratch.parallel.control import Control
from megascratch.parallel.mesh import Mesh


class AloneInWorld(Control):
    """The control plane of one rank; all others have the item of this one, but for those in `others`."""

    def __init__(self, rank: int, size: int, others: dict[int, Any] | None = None):
        super().__init__(rank, size, [])
        self.others = others or {}
        self.sent: list[Any] = []

    def reduce(self, item: Any, combine: Callable[[Any, Any], Any]) -> Any:
        self.sent.append(item)
        return combine(item, item)

    def broadcast(self, item: Any) -> Any:
        if self.is_first:
            self.sent.append(item)
        return item

    def gather(self, item: Any) -> list[Any]:
        self.sent.append(item)
        return [self.others.get(rank, item) for rank in range(self.size)] if self.is_first else []


class OneOf:
    """What a rank's monitor asks of its trainer."""

    def __init__(self, layout: Layout, rank: int, others: dict[int, Any] | None = None):
        alone = vars(Mesh.alone())
        world = Axis("world", layout.world, rank)
        control = AloneInWorld(rank, layout.world, others)
        self.mesh = Mesh(
            **alone | {"layout": layout, "rank": rank, "world": world, "control": control}
        )
