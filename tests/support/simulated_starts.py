"""The start of one rank of worlds of several sizes, and a law that needs only small ones."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from tools.simulated_start import Part, SimulatedStart, simulated_start

TP2_PP2 = ("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2")
LARGE_BATCH = ("--global-batch-size", "65536")
LAST_OF_ITS_MACHINE = 7


@cache
def start(world: int, rank: int = LAST_OF_ITS_MACHINE) -> SimulatedStart:
    return simulated_start([*TP2_PP2, *LARGE_BATCH], world, rank)


def part(name: str, of: SimulatedStart) -> Part:
    (found,) = [each for each in of.parts if each.name == name]
    return found


def a_larger_world_asks_for_no_more(folder: Path, run: Callable) -> None:
    """A rank of 64 makes as many groups and writes as many keys as one of 8; and its groups are as large, but for the
    data line and its group in the trees of the control planes."""
    asked = []
    for world in (8, 64):
        it = simulated_start(TP2_PP2, world, LAST_OF_ITS_MACHINE)
        lines = dict(it.lines)
        assert lines.pop("data") == world // 4
        fixed = {name: size for name, size in lines.items() if "control" not in name}
        asked.append((it.keys, part("process groups", it).groups, fixed))
    assert asked[0] == asked[1]
