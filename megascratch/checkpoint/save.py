"""Writes a checkpoint from all ranks and commits it in a single call, so that it is complete or absent: `save`.

Every rank writes its part of the chunks into a safetensors file of its own. The first rank proves that the chunks fill
every tensor and every file exactly once, and writes the table of chunks and the manifest. On a disk all files are
written in a private folder that is renamed at the end; in object storage the manifest is written last. After a crash
before that point no reader sees the step.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from megascratch.checkpoint.backend.backend import Draft, begin
from megascratch.checkpoint.consensus import on_all_ranks, on_first_rank
from megascratch.checkpoint.format.chunk_table import U64, WHERE, ChunkRows, DataFile
from megascratch.checkpoint.format.file_format import FileLayout
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.format.manifest import StepContents, TensorChunks, contents_of
from megascratch.checkpoint.steps import step_folder
from megascratch.checkpoint.write_plan import WritePlan, agree_on_write_plan
from megascratch.parallel.control import Control
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.storage.path import Place, storage_path

RawBytes = Callable[[int], memoryview]
"""Maps the number of a chunk in the layout of the rank's file to its bytes."""


class WriteTable(NamedTuple):
    """The file that a rank has written, and its chunks: what the first rank hears of it, 56 bytes for each chunk of a
    matrix."""

    file: DataFile
    tensors: list[tuple[str, tuple[int, ...], torch.dtype]]  # those that have chunks in it
    numbers: NDArray[np.uint64]
    """[chunks, 3 + 2 x dims]: number in `tensors`, offset, checksum and box of each chunk, with as many dims as the
    tensor with the most; other tensors have zeros behind their own."""


def save(
    folder: str | Place,
    step: int,
    held: list[ShardedTensor],
    state: dict[str, Any],
    control: Control,
) -> Place:
    """Writes `{folder}/step_{step:08d}`. Called by all ranks, which must share the file system or the
    store, while no other process writes there.

    Args:
        held: what this rank holds; the boxes of all ranks must fill every tensor, each once apart from its copies.
        state: any JSON; the first rank's is written.

    Raises: on all ranks, after removing what was written: UserError if the step already exists, DiskError if the disk
    or the store refuses, CheckpointError if the boxes do not fill a tensor.
    """
    plan = agree_on_write_plan(held, control)
    slots = plan.layout.slots
    place = storage_path(folder)
    return write_step(
        place, place, step, plan, lambda i: raw_bytes(slots[i].tensor), state, control
    )


def write_step(
    folder: Place,
    inside: Place,
    step: int,
    plan: WritePlan,
    raw: RawBytes,
    state: dict[str, Any],
    control: Control,
) -> Place:
    """Does the work of `save` with a given write plan.

    Args:
        inside: the folder of the writer's lease, or `folder` itself without a lease.
        raw: gives the bytes of each chunk, which may have been copied before.
    """
    draft = on_first_rank(
        control, lambda: begin(step_folder(folder, step), inside, plan.total_bytes)
    )
    try:
        name = draft.file_name(control.rank)
        own_table = on_all_ranks(control, lambda: write_file(draft, name, plan.layout, raw))
        tables = control.gather(own_table)
        on_first_rank(
            control,
            lambda: draft.commit(step_contents(step, state, tables, draft.table_name)),
        )
    except BaseException:
        if control.is_first:
            draft.discard()
        raise
    return draft.final


def write_file(draft: Draft, name: str, layout: FileLayout, raw: RawBytes) -> WriteTable | None:
    """Writes this rank's file, unless it has no chunks."""
    if not layout.slots:
        return None
    file, sums = draft.write(name, layout, raw)
    return write_table(file, layout, sums)


def write_table(file: DataFile, layout: FileLayout, sums: list[int]) -> WriteTable:
    """What the first rank hears of a file, of whose chunks the checksums are `sums`."""
    tensors: dict[tuple[str, tuple[int, ...], torch.dtype], int] = {}
    dims = max(len(slot.whole_shape) for slot in layout.slots)
    numbers = np.zeros((len(sums), WHERE + 2 * dims), U64)
    for row, slot, offset, checksum in zip(
        numbers, layout.slots, layout.offsets, sums, strict=True
    ):
        tensor = tensors.setdefault((slot.name, slot.whole_shape, slot.tensor.dtype), len(tensors))
        row[:WHERE] = tensor, offset, checksum
        own = len(slot.whole_shape)
        row[WHERE : WHERE + own] = slot.box.start
        row[WHERE + dims : WHERE + dims + own] = slot.box.stop
    return WriteTable(file, list(tensors), numbers)


def step_contents(
    step: int, state: dict[str, Any], tables: Iterable[WriteTable | None], table_name: str
) -> StepContents:
    """The manifest and the table of chunks of a step, from what all ranks have written. Needs memory for all rows four
    times, 0.5 GB for 2 million chunks.

    Raises: ValueError unless the chunks fill every tensor exactly once.
    """
    written = [table for table in tables if table is not None]
    return contents_of(step, state, [table.file for table in written], _merged(written), table_name)


def _merged(written: list[WriteTable]) -> dict[str, TensorChunks]:
    """The chunks of each tensor, in the order of their boxes."""
    described: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for table in written:
        for name, shape, dtype in table.tensors:
            known_shape, known_dtype = described.setdefault(name, (shape, dtype))
            if (known_shape, known_dtype) != (shape, dtype):
                raise ValueError(
                    f"ranks disagree on {name}: {list(known_shape)} {known_dtype} and {list(shape)} {dtype}"
                )
    names = sorted(described)
    number_of = {name: number for number, name in enumerate(names)}
    dims = max((len(shape) for shape, _ in described.values()), default=0)
    rows = np.zeros((sum(len(table.numbers) for table in written), WHERE + 2 * dims), U64)
    tensor = np.empty(len(rows), U64)  # of each row
    end = 0
    for file, table in enumerate(written):
        part = slice(end, end + len(table.numbers))
        end = part.stop
        own = (table.numbers.shape[1] - WHERE) // 2
        numbers = np.array([number_of[name] for name, _, _ in table.tensors], U64)
        tensor[part] = numbers[table.numbers[:, 0]]
        rows[part, 0] = file
        rows[part, 1 : WHERE + own] = table.numbers[:, 1 : WHERE + own]
        rows[part, WHERE + dims : WHERE + dims + own] = table.numbers[:, WHERE + own :]
    boxes = [rows[:, column] for column in range(WHERE, WHERE + 2 * dims)]
    order = np.lexsort([*reversed(boxes), tensor])
    rows = rows[order]
    ends = np.searchsorted(tensor[order], np.arange(len(names) + 1, dtype=U64))
    tensors = {}
    for number, name in enumerate(names):
        shape, dtype = described[name]
        own = len(shape)
        columns = [*range(WHERE + own), *range(WHERE + dims, WHERE + dims + own)]
        chunks = rows[ends[number] : ends[number + 1], columns]
        tensors[name] = TensorChunks(shape, dtype, ChunkRows(chunks))
    return tensors
