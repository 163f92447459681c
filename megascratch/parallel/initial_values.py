"""Initial weights: the same values on every layout, device and number of threads (law 2), and a rank draws only the
blocks that it holds.

A weight is a stack of matrices, its last two dims; a vector is a matrix of one column. Each matrix is cut into blocks
of at most 256 columns and 32,768 elements. A block has a Philox stream of its own (Salmon et al. 2011): its key is the
hash of the seed and the weight's name, its counter the numbers of the matrix, of the row of blocks and of the column of
blocks. So the value at a global index does not depend on which other elements are drawn.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megascratch.parallel.shard import Box

# Part of the definition of every initial weight. The number of elements also keeps torch's copy of one block on the
# thread that drew it: torch uses several threads for more.
_COLUMNS = 256
_ELEMENTS = 1 << 15


class NormalBlock(NamedTuple):
    """A block of a weight, and the elements of it that a rank keeps."""

    key: int  # 128 bits
    counter: tuple[int, int, int]  # column of blocks, row of blocks, matrix
    shape: tuple[int, int]  # rows and columns to draw; rows after the last kept one are not drawn
    kept: tuple[slice, slice]  # of them
    out: Tensor  # [rows, columns], the kept elements in the rank's weight
    std: float
    mean: float

    def fill(self) -> None:
        """Draws the block and writes mean + std * N(0, 1), rounded once from fp64, to the elements that are kept."""
        counter = np.array((0, *self.counter), np.uint64)
        stream = np.random.Generator(np.random.Philox(key=self.key, counter=counter))
        drawn = stream.standard_normal(self.shape, np.float32)[self.kept]
        wide = np.multiply(drawn, self.std, dtype=np.float64)
        if self.mean:
            wide += self.mean
        self.out.copy_(torch.from_numpy(wide))


def normal_blocks(
    seed: int,
    name: str,
    shape: tuple[int, ...],
    box: Box,
    out: Tensor,
    std: float = 1.0,
    mean: float = 0.0,
) -> list[NormalBlock]:
    """The blocks that together fill `out` with the elements of `box`, part of the weight `name` of that global shape.

    Args:
        out: of the box's shape, any floating type and device, for example a view of a parameter; without gradient.
    """
    missing = max(0, 2 - len(shape))  # a vector is one column
    shape += (1,) * missing
    start = box.start + (0,) * missing
    stop = box.stop + (1,) * missing
    out = out.reshape([*out.shape, *(1,) * missing])
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    outer_ranges = [range(first, end) for first, end in zip(start[:-2], stop[:-2], strict=True)]
    blocks = []
    for index in product(*outer_ranges):
        matrix = 0  # its number in the stack
        plane = out
        for number, first, size in zip(index, start, shape, strict=False):
            matrix = matrix * size + number
            plane = plane[number - first]
        for cut in _cuts(shape[-2:], Box(start[-2:], stop[-2:])):
            counter = (cut.column_block, cut.row_block, matrix)
            blocks.append(
                NormalBlock(key, counter, cut.drawn, cut.kept, plane[cut.local], std, mean)
            )
    return blocks


class _Cut(NamedTuple):
    """What a box of a matrix has of one block."""

    row_block: int
    column_block: int
    drawn: tuple[int, int]  # rows and columns to draw
    kept: tuple[slice, slice]  # of them
    local: tuple[slice, slice]  # where they are in the box


def _cuts(matrix: tuple[int, ...], box: Box) -> list[_Cut]:
    """The blocks of a matrix [rows, columns] that overlap the box."""
    _, width = matrix
    (first, left), (end, right) = box
    block_width = max(1, min(width, _COLUMNS))
    block_rows = _ELEMENTS // block_width
    row_blocks = range(first // block_rows, -(-end // block_rows))
    column_blocks = range(left // block_width, -(-right // block_width))
    cuts = []
    for row_block, column_block in product(row_blocks, column_blocks):
        top = row_block * block_rows
        side = column_block * block_width
        rows = slice(max(first, top), min(end, top + block_rows))
        columns = slice(max(left, side), min(right, side + block_width))
        drawn = (rows.stop - top, min(width - side, block_width))
        kept = (_moved(rows, -top), _moved(columns, -side))
        local = (_moved(rows, -first), _moved(columns, -left))
        cuts.append(_Cut(row_block, column_block, drawn, kept, local))
    return cuts


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def fill_all(blocks: Sequence[NormalBlock]) -> None:
    """Fills the blocks on as many threads as torch uses; numpy draws without Python's lock."""
    threads = min(torch.get_num_threads(), len(blocks))
    if threads <= 1:
        _fill(blocks)
        return
    with ThreadPoolExecutor(threads) as pool:
        shares = [blocks[thread::threads] for thread in range(threads)]
        list(pool.map(_fill, shares))


def _fill(blocks: Sequence[NormalBlock]) -> None:
    for block in blocks:
        block.fill()
