"""Writes a checkpoint from all ranks and commits it in a single call, so that it is complete or absent: `save`.

Every rank writes its part of the chunks into a safetensors file of its own. The first rank proves that the chunks fill
every tensor and every file exactly once, and writes the manifest. On a disk all files are written in a private folder
that is renamed at the end; in object storage the manifest is written last. After a crash before that point no reader
sees the step.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from megascratch.checkpoint.backend.backend import Draft, begin
from megascratch.checkpoint.consensus import on_all_ranks, on_first_rank
from megascratch.checkpoint.format.file_format import FileLayout
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.format.manifest import (
    DataFile,
    Manifest,
    StoredBox,
    TensorEntry,
    check_coverage,
    to_text,
)
from megascratch.checkpoint.steps import step_folder
from megascratch.checkpoint.write_plan import WritePlan, agree_on_write_plan
from megascratch.parallel.control import Control
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.storage.path import Place, storage_path

RawBytes = Callable[[int], memoryview]
"""Maps the number of a chunk in the layout of the rank's file to its bytes."""


class WriteEntry(NamedTuple):
    """A chunk as its rank reports it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunk: StoredBox


class WriteTable(NamedTuple):
    """The files and chunks that a rank has written."""

    files: dict[str, DataFile]
    entries: list[WriteEntry]


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
        held: what this rank holds; the boxes with copy 0 of all ranks must fill every tensor exactly once.
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
        on_first_rank(control, lambda: draft.commit(manifest_of(step, state, tables)))
    except BaseException:
        if control.is_first:
            draft.discard()
        raise
    return draft.final


def write_file(draft: Draft, name: str, layout: FileLayout, raw: RawBytes) -> WriteTable:
    """Writes this rank's file, unless it has no chunks."""
    if not layout.slots:
        return WriteTable({}, [])
    file, sums = draft.write(name, layout, raw)
    entries = []
    for slot, offset, checksum in zip(layout.slots, layout.offsets, sums, strict=True):
        chunk = StoredBox(name, offset, slot.box, checksum)
        entries.append(WriteEntry(slot.name, slot.whole_shape, slot.tensor.dtype, chunk))
    return WriteTable({name: file}, entries)


def manifest_of(step: int, state: dict[str, Any], tables: list[WriteTable]) -> bytes:
    """The text of the manifest. Raises: ValueError unless the chunks fill every tensor exactly once."""
    files: dict[str, DataFile] = {}
    entries: list[WriteEntry] = []
    for table in tables:
        files |= table.files
        entries += table.entries
    manifest = Manifest(step, state, files, _tensor_entries(entries))
    check_coverage(manifest)
    return to_text(manifest)


@dataclass
class _Open:
    """A tensor whose chunks are still being collected."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[StoredBox]


def _tensor_entries(entries: Iterable[WriteEntry]) -> dict[str, TensorEntry]:
    found: dict[str, _Open] = {}
    for name, shape, dtype, chunk in entries:
        tensor = found.setdefault(name, _Open(shape, dtype, []))
        if (tensor.shape, tensor.dtype) != (shape, dtype):
            raise ValueError(
                f"ranks disagree on {name}: {list(tensor.shape)} {tensor.dtype} and {list(shape)} {dtype}"
            )
        tensor.chunks.append(chunk)
    tensors = {}
    for name, tensor in sorted(found.items()):
        chunks = sorted(tensor.chunks, key=lambda chunk: chunk.box)
        tensors[name] = TensorEntry(tensor.shape, tensor.dtype, tuple(chunks))
    return tensors
