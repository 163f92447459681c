"""The lines of ranks along the axes of a layout: which ranks communicate. Pure arithmetic, without torch or a cluster.

The lines of one axis are disjoint. A rank makes a process group for its own line of each axis only, so its number of
groups does not grow with the world.
"""

from collections.abc import Callable
from dataclasses import dataclass

from megascratch.config.layout import Layout
from megascratch.parallel.grid import Grid

EveryLine = Callable[[], list[list[int]]]
"""Returns all lines of an axis, ordered by their first ranks."""

FORWARD = "forward"
BACKWARD = "backward"


@dataclass(frozen=True)
class RankLine:
    """One rank's line of an axis.

    Args:
        mine: the ranks of the line, in rank order; only the rank itself if it has no line on this axis.
        every: all lines of the axis, for libraries that make the groups of all ranks in one call.
    """

    name: str
    mine: tuple[int, ...]
    every: EveryLine


def line_of(layout: Layout, rank: int, name: str, view: str, axes: tuple[str, ...]) -> RankLine:
    """The line of a rank along axes of a view, which are joined."""
    grid = Grid(layout.sizes(view))
    return RankLine(name, tuple(grid.group(rank, *axes)), lambda: grid.groups(*axes))


def embedding_line(layout: Layout, rank: int) -> RankLine:
    """First and last stage of a pipeline, which hold the two copies of a tied embedding."""
    grid = Grid(layout.sizes("dense"))
    stages = grid.group(rank, "pp")
    ends = (stages[0], stages[-1])
    mine = ends if layout.pp > 1 and rank in ends else (rank,)

    def every() -> list[list[int]]:
        return [sorted({stages[0], stages[-1]}) for stages in grid.groups("pp")]

    return RankLine("embedding", mine, every)


@dataclass(frozen=True)
class RingLink:
    """A link between two neighbouring stages of the ring, in one direction.

    Links of one colour share no stage, so all of them can be made in one call; an odd ring needs three colours.
    """

    source: int  # stage
    target: int
    direction: str
    colour: int

    @property
    def name(self) -> str:
        return f"pp {self.direction} {self.colour}"


def ring_links(stages: int) -> list[RingLink]:
    """All links of a ring of stages, those of a colour and a direction together: every rank makes its own in this
    order, so that no two ranks wait for each other in a circle."""
    links = []
    for stage in range(stages):
        following = (stage + 1) % stages
        colour = 2 if stages % 2 and following == 0 else stage % 2
        links.append(RingLink(stage, following, FORWARD, colour))
        links.append(RingLink(following, stage, BACKWARD, colour))
    return sorted(links, key=lambda link: (link.colour, link.direction != FORWARD))


def link_lines(layout: Layout, rank: int) -> list[tuple[RankLine, RingLink | None]]:
    """The lines of each colour and direction, in the order of `ring_links`, with the rank's own link on it, if any."""
    grid = Grid(layout.sizes("dense"))
    pipeline = grid.group(rank, "pp")
    of_name: dict[str, list[RingLink]] = {}
    for link in ring_links(layout.pp):
        of_name.setdefault(link.name, []).append(link)
    found: list[tuple[RankLine, RingLink | None]] = []
    for name, links in of_name.items():
        own = None
        mine: tuple[int, ...] = (rank,)
        for link in links:
            ends = (pipeline[link.source], pipeline[link.target])
            if rank in ends:
                own = link
                mine = tuple(sorted(ends))
        found.append((RankLine(name, mine, _pairs(grid, links)), own))
    return found


def _pairs(grid: Grid, links: list[RingLink]) -> EveryLine:
    def every() -> list[list[int]]:
        pairs = []
        for pipeline in grid.groups("pp"):
            pairs += [sorted((pipeline[link.source], pipeline[link.target])) for link in links]
        return sorted(pairs)

    return every
