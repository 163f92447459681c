"""Loads a checkpoint into the tensors of this rank, whatever layout wrote it: `load`.

All ranks get the manifest from the first one. Of the table of chunks a rank reads the rows of the tensors that it
wants; for each wanted box it reads the stored chunks that overlap it, each once, and verifies their checksums. Chunks
that overlap no wanted box are not read, but the ranks together check the presence, size and header of every file, and
the first rank that the chunks fill the files.
"""

import operator
import warnings
from collections import defaultdict
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megascratch.checkpoint.backend.backend import File, step_at
from megascratch.checkpoint.chunk_reader import ChunkReader
from megascratch.checkpoint.consensus import on_all_ranks, on_first_rank
from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.format.boxes import box_text, volume
from megascratch.checkpoint.format.chunk_table import ChunkRows, StoredBox
from megascratch.checkpoint.format.file_format import GROUP_CHUNKS
from megascratch.checkpoint.format.io import checksum, in_threads
from megascratch.checkpoint.format.manifest import TensorEntry
from megascratch.checkpoint.open_checkpoint import relative_slices
from megascratch.checkpoint.steps import (
    ResolvedStep,
    candidates,
    check_files,
    latest_valid,
    read_manifest,
)
from megascratch.config.errors import UserError
from megascratch.config.printable import printable, shown
from megascratch.parallel.control import Control
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.storage.path import Place


def load(
    path: str | Place,
    held: list[ShardedTensor],
    control: Control,
    *,
    prefix: str | tuple[str, ...] = "",
    cast: bool = False,
) -> dict[str, Any]:
    """Fills every `held.tensor`, copies included, and returns the saved state; called by all ranks.

    Args:
        path: a step folder, or a folder of step folders: then the newest valid one is loaded, with a warning for each
            newer one that is damaged.
        prefix: load only names that begin so (or with one of several), e.g. "param."; the ranks together must want
            exactly these names of the checkpoint, so that no layer is silently left out.
        cast: convert a tensor of another floating-point type; without it another type is an error.

    Raises: on all ranks, naming file and tensor: DamagedError if `path` is a step with missing or wrong bytes,
    UserError if there is no valid step or the checkpoint belongs to another model.
    """
    found = load_newest(path, held, control, prefix=prefix, cast=cast)
    if control.is_first:
        for problem in found.passed_over.values():
            warnings.warn(f"skipped: {printable(problem)}", stacklevel=2)
    return found.result


def load_newest(
    path: str | Place,
    held: list[ShardedTensor],
    control: Control,
    *,
    prefix: str | tuple[str, ...] = "",
    cast: bool = False,
) -> ResolvedStep[dict[str, Any]]:
    """Like `load`, but returns which step was loaded and which ones were skipped, instead of warning."""
    # a rank may hold nothing but padding of a tensor
    held = [item for item in held if volume(item.box)]
    names = {item.name for item in held}

    def read(step: Place) -> dict[str, Any]:
        manifest = on_first_rank(control, lambda: read_manifest(step))
        reader = ChunkReader(step, manifest)
        on_all_ranks(control, lambda: _check_files(reader, control.rank, control.size))
        there = [name for name in manifest.tensors if name.startswith(prefix)]
        mine = on_all_ranks(control, lambda: _wanted_bits(step, there, names))
        wanted = control.reduce(mine, operator.or_)
        on_all_ranks(control, lambda: _require_all_wanted(step, there, wanted))
        on_all_ranks(control, lambda: _fill(reader, held, cast))
        return manifest.state

    return latest_valid(path, on_first_rank(control, lambda: candidates(path)), read)


def _check_files(reader: ChunkReader, rank: int, ranks: int) -> None:
    """Checks this rank's share of the files."""
    if rank == 0:
        reader.check_files_are_full()
    check_files(reader.step, reader.files()[rank::ranks])


class Read(NamedTuple):
    """A stored chunk to read, and the tensors that want parts of it."""

    name: str
    dtype: torch.dtype
    chunk: StoredBox
    nbytes: int
    wanted: list[tuple[ShardedTensor, Box]]

    def label(self) -> str:
        return f"{self.name}{box_text(self.chunk.box)}"


def _fill(reader: ChunkReader, held: list[ShardedTensor], cast: bool) -> None:
    tensors = reader.manifest.tensors
    rows = reader.chunks({item.name for item in held})
    wanting: dict[tuple[str, int], list[tuple[ShardedTensor, Box]]] = defaultdict(list)
    for item in held:
        _require_same_tensor(reader.step, tensors[item.name], item, cast)
        for index, common in _overlaps(reader.step, rows[item.name], item):
            wanting[item.name, index].append((item, common))

    reads = []
    for (name, index), wanted in wanting.items():
        whole = tensors[name]
        chunk = rows[name].chunk(index, reader.files())
        reads.append(Read(name, whole.dtype, chunk, whole.chunk_bytes(chunk), wanted))
    reads.sort(key=lambda read: (read.chunk.file, read.chunk.offset))
    source = step_at(reader.step)
    for file_name, of_file in groupby(reads, key=lambda read: read.chunk.file):
        file = source.open(file_name)
        try:
            groups = _neighbours(list(of_file), source.group_bytes)
            in_threads(partial(read_group, file), groups, source.threads)
        finally:
            file.close()


def _neighbours(reads: list[Read], most: int) -> list[list[Read]]:
    """Groups chunks that follow each other in the file and are small together: one read per group."""
    groups: list[list[Read]] = []
    end = -1
    filled = 0
    for read in reads:
        filled += read.nbytes
        if read.chunk.offset != end or filled > most or len(groups[-1]) == GROUP_CHUNKS:
            groups.append([])
            filled = read.nbytes
        groups[-1].append(read)
        end = read.chunk.offset + read.nbytes
    return groups


def read_group(file: File, group: list[Read]) -> None:
    """Reads neighbouring chunks, verifies their checksums and copies the wanted parts. Raises: DamagedError."""
    own = [_own_memory(read) for read in group]
    buffers: list[memoryview] = []
    for read, mine in zip(group, own, strict=True):
        if mine is None:
            mine = memoryview(bytearray(read.nbytes))
        buffers.append(mine)
    try:
        file.read_into(group[0].chunk.offset, *buffers)
    except DamagedError as error:
        raise DamagedError(f"{error}; it holds {group[0].label()}") from error
    for read, mine, buffer in zip(group, own, buffers, strict=True):
        if checksum(buffer) != read.chunk.xxh3_64:
            raise DamagedError(
                f"{file.path} is damaged: the bytes of {read.label()} do not match their checksum"
            )
        if mine is None:
            chunk = torch.frombuffer(buffer, dtype=read.dtype).view(read.chunk.box.shape)
            for item, common in read.wanted:
                target = item.tensor[relative_slices(common, item.box)]
                target.copy_(chunk[relative_slices(common, read.chunk.box)])


def _own_memory(read: Read) -> memoryview | None:
    """The memory of the target tensor, if the bytes of the chunk can be read directly into it; else None."""
    if len(read.wanted) > 1:
        return None
    item, common = read.wanted[0]
    target: Tensor = item.tensor[relative_slices(common, item.box)].detach()
    if (
        common != read.chunk.box
        or target.dtype != read.dtype
        or target.is_cuda
        or not target.is_contiguous()
    ):
        return None
    return target.as_strided((target.numel(),), (1,)).view(torch.uint8).numpy().data


def _wanted_bits(step: Place, there: list[str], wanted: set[str]) -> int:
    """A bit for each name of the checkpoint: whether this rank wants it. Raises: UserError for a name that is not
    there."""
    missing = sorted(wanted.difference(there))
    if missing:
        raise UserError(
            f"{step} has no tensor {_few(missing)}: it was written by another model or other settings"
        )
    return sum(1 << number for number, name in enumerate(there) if name in wanted)


def _require_all_wanted(step: Place, there: list[str], wanted: int) -> None:
    """Raises: UserError if there is a name whose bit no rank has set."""
    unwanted = [name for number, name in enumerate(there) if not wanted >> number & 1]
    if unwanted:
        raise UserError(f"{step} has tensors that this model does not have: {_few(unwanted)}")


def _few(names: list[str]) -> str:
    few = ", ".join([shown(name) for name in names[:3]])
    if len(names) > 3:
        few += f" (and {len(names) - 3} more)"
    return few


def _require_same_tensor(step: Place, whole: TensorEntry, item: ShardedTensor, cast: bool) -> None:
    needed = tuple(item.whole_shape)
    if whole.shape != needed:
        raise UserError(
            f"{step}: {item.name} has shape {list(whole.shape)}, this model needs {list(needed)}"
        )
    can_cast = cast and whole.dtype.is_floating_point and item.dtype.is_floating_point
    if whole.dtype != item.dtype and not can_cast:
        raise UserError(
            f"{step}: {item.name} has {whole.dtype}, this run needs {item.dtype}: set the same precision"
        )


def _overlaps(step: Place, rows: ChunkRows, item: ShardedTensor) -> list[tuple[int, Box]]:
    """The numbers of the chunks that overlap a wanted box, each with the common box. Chunks are disjoint, so the sum of
    the volumes shows whether they cover all of it."""
    found = list(rows.overlapping(item.box))
    covered = sum(volume(common) for _, common in found)
    if covered != volume(item.box):
        raise UserError(
            f"{step}: {item.name}{box_text(item.box)} reaches beyond the {covered:,} saved elements of it"
        )
    return found
