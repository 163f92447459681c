"""Laws of the table of chunks and of who reads and writes what; each raises AssertionError where it does not hold."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megascratch import checkpoint
from megascratch.checkpoint.format.boxes import whole_box
from megascratch.checkpoint.format.chunk_table import U64, WHERE, ChunkRows, check_coverage
from megascratch.config.errors import UserError
from megascratch.parallel.control import Control
from megascratch.parallel.shard import Box, CopyAxis
from megascratch.parallel.sharded_tensor import ShardedTensor
from tests.support.random_shards import random_boxes, world

BOXES = 40  # random sets of boxes, each sound and damaged in several ways


def tensor_of(name: str, values: torch.Tensor, copy: int = 0, *over: CopyAxis) -> ShardedTensor:
    shape = tuple(values.shape)
    return ShardedTensor(name, shape, whole_box(shape), values, copy, over)


# ---- boxes -----------------------------------------------------------------------------------------------------


def rows_of(boxes: list[Box], dims: int) -> ChunkRows:
    rows = [(0, 0, 0, *box.start, *box.stop) for box in boxes]
    return ChunkRows(np.array(rows, U64).reshape(len(boxes), WHERE + 2 * dims))


def fill_once(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """By counting every element."""
    times = np.zeros(shape, int)
    for box in boxes:
        times[box.slices] += 1
    return bool((times == 1).all())


def damaged_boxes(boxes: list[Box], draw: random.Random) -> list[list[Box]]:
    """One left out, one twice, one in the place of another, one with another end."""
    one, other = draw.randrange(len(boxes)), draw.randrange(len(boxes))
    found = [boxes[:one] + boxes[one + 1 :], [*boxes, boxes[one]]]
    found.append([boxes[other] if number == one else box for number, box in enumerate(boxes)])
    box = boxes[one]
    for dim, size in enumerate(box.shape):
        if size > 1:
            shorter = (*box.stop[:dim], box.stop[dim] - 1, *box.stop[dim + 1 :])
            found.append([*boxes[:one], Box(box.start, shorter), *boxes[one + 1 :]])
    return found


def only_boxes_that_fill_a_tensor_once_are_accepted() -> None:
    draw = random.Random(0)
    for _ in range(BOXES):
        shape = tuple(draw.randrange(1, 7) for _ in range(draw.randrange(4)))
        boxes = random_boxes(shape, draw.randrange(12), draw)
        for changed in [boxes, *damaged_boxes(boxes, draw)]:
            try:
                check_coverage("w", shape, rows_of(changed, len(shape)))
                accepted = True
            except ValueError:
                accepted = False
            assert accepted == fill_once(shape, changed), f"{changed} in {shape}"


def boxes_whose_volumes_add_up_are_refused_where_they_overlap() -> None:
    """Two halves of a square that are the same half."""
    half = Box((0, 0), (1, 2))
    for boxes in ([half, half], [Box((0, 0), (2, 1)), half]):
        try:
            check_coverage("w", (2, 2), rows_of(boxes, 2))
            refused = ""
        except ValueError as error:
            refused = str(error)
        assert "overlap" in refused, f"{boxes} are accepted"


# ---- rows ------------------------------------------------------------------------------------------------------


def each_tensor_gets_its_own_rows(folder: Path) -> None:
    """Two tensors of one shape and one type come back each as itself."""
    values = {f"w{number}": torch.full((4,), float(number)) for number in range(3)}
    step = checkpoint.save(folder, 1, [tensor_of(*item) for item in values.items()], {}, world())
    held = [tensor_of(name, torch.zeros(4)) for name in values]
    checkpoint.load(step, held, world())
    for item in held:
        assert torch.equal(item.tensor, values[item.name]), f"{item.name} is not itself"


def rows_that_changed_places_are_refused(folder: Path) -> None:
    """Those of two tensors of one shape: only their checksums can tell."""
    held = [tensor_of(f"w{number}", torch.full((4,), float(number))) for number in range(2)]
    step = checkpoint.save(folder, 1, held, {}, world())
    table = step / "chunks.bin"
    content = table.read_bytes()
    files, first, second = content[:88], content[88:128], content[128:]
    table.write_bytes(files + second + first)
    try:
        checkpoint.load(step, held, world())
        refused = ""
    except UserError as error:
        refused = str(error)
    assert "chunks.bin is damaged: the bytes from 88" in refused, "rows of others are accepted"


# ---- ranks -----------------------------------------------------------------------------------------------------


def saved_by_two(folder: Path) -> tuple[list[float], str]:
    """Each rank holds a tensor of its own and a copy of ten others; what the first file has, and what went wrong."""
    rank = dist.get_rank()
    control: Control = world(2, rank, dist.group.WORLD)
    both = CopyAxis("data", 2)
    held = [tensor_of(f"own{rank}", torch.full((3,), float(rank)))]
    held += [tensor_of(f"both{n}", torch.full((3,), float(n)), rank, both) for n in range(10)]
    try:
        checkpoint.save(folder, 1, held, {}, control)
        for item in held:
            item.tensor.fill_(-1.0)
        checkpoint.load(folder, held, control)
    except Exception as error:
        return [], str(error)
    return [item.tensor.unique().item() for item in held], ""


def ranks_write_and_want_together_what_no_rank_holds_alone(folder: Path, run: Callable) -> None:
    for rank, (values, error) in enumerate(run(2, saved_by_two, folder)):
        assert not error, error
        assert values == [rank, *range(10)]
