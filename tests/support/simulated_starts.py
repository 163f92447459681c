"""The start of one rank of worlds of several sizes, and a law that needs only small ones."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from megascratch.checkpoint import read_manifest
from megascratch.config.layout import Layout
from megascratch.parallel.grid import Position
from tools.simulated_start import Part, SimulatedStart, simulated_start, written_by

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


def a_rank_reads_the_rows_of_its_own_tensors(folder: Path, run: Callable) -> None:
    """Of the table of chunks: the rows of the files, and of the tensors of its stage; in a world of any size. It does
    not read the manifest, which the first rank sends."""
    step = written_by(TP2_PP2, 16, folder)
    manifest = read_manifest(step)
    stage = Layout(tp=2, pp=2, dp=2)
    for world, rank in ((8, 7), (64, 63), (64, 1)):
        layout = replace(stage, dp=world // 4)
        last = Position(layout, rank).coords("dense")["pp"] == 1
        rows = manifest.file_rows.nbytes
        for name, tensor in manifest.tensors.items():
            if is_of_stage(name, last):
                rows += tensor.rows.nbytes
        read = simulated_start(TP2_PP2, world, rank, checkpoint=step).read
        assert (read.get(".json", 0), read[".bin"]) == (0, rows)


def is_of_stage(name: str, last: bool) -> bool:
    """Whether a tensor of the tiny model of four layers is on the last of two stages, or on the first."""
    layer = re.search(r"layers\.(\d)\.", name)
    if layer is not None:
        return (int(layer[1]) >= 2) == last
    if "embedding.word" in name:  # tied: both ends hold it
        return True
    return ("final_norm" in name) == last
