"""Breaks of how a checkpoint is divided among ranks and read in tables: name -> replacements, and the law of
`checkpoint_laws.py` that must notice."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from megascratch.checkpoint import write_plan
from megascratch.checkpoint.chunk_reader import ChunkReader
from megascratch.checkpoint.format import chunk_table
from megascratch.data_parallel import base
from megascratch.parallel.sharded_tensor import held_piece
from tests.support.breaks.axes import ddp_on
from tests.support.breaks.replacing import nothing
from tests.support.checkpoint_laws import (
    boxes_whose_volumes_add_up_are_refused_where_they_overlap,
    each_tensor_gets_its_own_rows,
    only_boxes_that_fill_a_tensor_once_are_accepted,
    ranks_write_and_want_together_what_no_rank_holds_alone,
    rows_that_changed_places_are_refused,
)

Law = Callable[[Path, Callable], None]


def coverage(folder: Path, run: Callable) -> None:
    only_boxes_that_fill_a_tensor_once_are_accepted()


def volumes(folder: Path, run: Callable) -> None:
    boxes_whose_volumes_add_up_are_refused_where_they_overlap()


def own_rows(folder: Path, run: Callable) -> None:
    each_tensor_gets_its_own_rows(folder)


def changed_places(folder: Path, run: Callable) -> None:
    rows_that_changed_places_are_refused(folder)


def numbered_as_the_first(name, shard, piece, tensor):
    return held_piece(name, shard, piece._replace(copy=0), tensor)


def by_a_rule_of_its_own(chunks, before):
    """Each rank begins with another copy."""
    rank = dist.get_rank()
    writers = plain_writers(chunks, before)
    return {chunk: (writer + rank) % len(before) for chunk, writer in writers.items()}


def rows_of_the_next_tensor(self, names):
    found = plain_chunks(self, names)
    return dict(zip(found, [*list(found.values())[1:], next(iter(found.values()))], strict=True))


def first_bits(one, other):
    return one


def add_up(shape, rows):
    return int(rows.volumes.sum()) == chunk_table.math.prod(shape)


def without_the_other_dims(shape, rows):
    """Corners along dim 0 alone."""
    if len(shape) < 2:
        return plain_fills(shape, rows)
    numbers = rows.numbers[:, [0, 1, 2, 3, 3 + len(shape)]]
    return plain_fills(shape[:1], chunk_table.ChunkRows(numbers))


plain_writers = write_plan.assign_writers
plain_chunks = ChunkReader.chunks
plain_fills = chunk_table._fills

BREAKS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "all copies of a box have the number 0": (
        [(base, "held_piece", numbered_as_the_first)],
        ddp_on("tp2 dp2"),
    ),
    "replicas divide their boxes by different rules": (
        [(write_plan, "assign_writers", by_a_rule_of_its_own)],
        ranks_write_and_want_together_what_no_rank_holds_alone,
    ),
    "names wanted by the first rank only": (
        [(sys.modules["megascratch.checkpoint.load"], "operator", SimpleNamespace(or_=first_bits))],
        ranks_write_and_want_together_what_no_rank_holds_alone,
    ),
    "rows of the wrong tensor": (
        [(ChunkReader, "chunks", rows_of_the_next_tensor)],
        own_rows,
    ),
    "rows of the table are not compared with their checksum": (
        [(ChunkReader, "_require_checksum", nothing)],
        changed_places,
    ),
    "a tensor is full when the volumes of its boxes add up": (
        [(chunk_table, "_fills", add_up)],
        volumes,
    ),
    "boxes fill a tensor when they fill its first dim": (
        [(chunk_table, "_fills", without_the_other_dims)],
        coverage,
    ),
}
