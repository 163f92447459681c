"""`save`: what every rank holds in, one folder that no layout shows through out, committed by a single rename.

Every rank writes the boxes of which it holds copy 0 into a safetensors file of its own, in a private folder beside
the final one; the first rank proves that the boxes fill every tensor exactly once, writes the manifest, and renames.
A crash before the rename leaves a hidden folder `.step_*.partial` and nothing else.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megascratch.checkpoint.agreement import everyone, first
from megascratch.checkpoint.files import Slot, write
from megascratch.checkpoint.folders import step_folder
from megascratch.checkpoint.manifest import DTYPES, FILE, Chunk, Manifest, Whole, require_full_cover, to_text
from megascratch.config.errors import UserError
from megascratch.parallel.held import Held
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Box

CHUNK_BYTES = 1 << 26
"""Larger boxes are cut along dim 0, so that a rank which needs little reads little."""


class Entry(NamedTuple):
    """A chunk as its rank reports it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunk: Chunk


def save(folder: str | Path, step: int, held: list[Held], state: dict[str, Any], world: Axis) -> Path:
    """Writes `{folder}/step_{step:08d}`; called by all ranks of `world`, which share the file system.

    Args:
        held: what this rank holds; all ranks' boxes with copy 0 must fill every tensor exactly once.
        state: any JSON; the first rank's is written.

    Raises: on all ranks, with only what was there before left on disk: UserError where the step is already there or
    the disk refuses, CheckpointError where the boxes do not fill a tensor.
    """
    final = step_folder(folder, step)
    private = first(world, lambda: _private_folder(final))
    try:
        tables = everyone(world, lambda: _write_file(private, world.rank, held))
        first(world, lambda: _commit(private, final, step, state, [entry for table in tables for entry in table]))
    except BaseException:
        if world.is_first:
            shutil.rmtree(private, ignore_errors=True)
        raise
    return final


def _private_folder(final: Path) -> Path:
    _require_new(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    private = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.partial")
    private.mkdir()
    return private


def _require_new(final: Path) -> None:
    if os.path.lexists(final):
        raise UserError(f"{final} is already there and checkpoints are never overwritten: move it or save elsewhere")


def _write_file(private: Path, rank: int, held: list[Held]) -> list[Entry]:
    """Writes this rank's file, if it has anything to write; what it holds."""
    if not private.is_dir():
        raise UserError(f"{private.parent} is not the same folder on all ranks: save to a shared file system")
    file = f"{rank:05d}.safetensors"
    slots: dict[str, Slot] = {}
    placed: list[tuple[Held, Box]] = []
    for item in held:
        _require_sound(item)
        for box, part in _cut(item.box, item.tensor) if item.copy == 0 else ():
            slots[str(len(placed))] = Slot(box.shape, item.dtype, part)
            placed.append((item, box))
    checksums = write(private / file, slots) if slots else {}
    return [Entry(item.name, item.whole_shape, item.dtype, Chunk(file, str(key), box, checksums[str(key)]))
            for key, (item, box) in enumerate(placed)]


def _require_sound(item: Held) -> None:
    """What the optimizer says of a tensor must be true of it: else the checkpoint would lie."""
    if tuple(item.tensor.shape) != item.box.shape:
        raise ValueError(f"{item.name}: {list(item.tensor.shape)} is told to be {list(item.box.shape)}")
    if item.dtype not in DTYPES.values():
        raise ValueError(f"{item.name}: {item.dtype} cannot be saved, only {', '.join(DTYPES)}")


def _cut(box: Box, tensor: Tensor) -> list[tuple[Box, Callable[[], Tensor]]]:
    """The box in slabs of at most CHUNK_BYTES (or one row); an empty box gives none."""
    if tensor.numel() == 0:
        return []
    if tensor.dim() == 0 or tensor.nbytes <= CHUNK_BYTES:
        return [(box, lambda: tensor)]
    rows = max(1, CHUNK_BYTES * tensor.shape[0] // tensor.nbytes)
    return [_slab(box, tensor, start, min(start + rows, tensor.shape[0])) for start in range(0, tensor.shape[0], rows)]


def _slab(box: Box, tensor: Tensor, start: int, stop: int) -> tuple[Box, Callable[[], Tensor]]:
    first_row = box.start[0]
    place = Box((first_row + start, *box.start[1:]), (first_row + stop, *box.stop[1:]))
    return place, lambda: tensor[start:stop]


def _commit(private: Path, final: Path, step: int, state: dict[str, Any], entries: list[Entry]) -> None:
    manifest = Manifest(step, state, _wholes(entries))
    require_full_cover(manifest.tensors)
    (private / FILE).write_bytes(to_text(manifest))
    _sync(private / FILE)
    _sync(private)
    _require_new(final)
    os.rename(private, final)
    _sync(final.parent)


@dataclass
class _Open:
    """A tensor whose chunks are still coming in."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[Chunk]


def _wholes(entries: Iterable[Entry]) -> dict[str, Whole]:
    found: dict[str, _Open] = {}
    for name, shape, dtype, chunk in entries:
        tensor = found.setdefault(name, _Open(shape, dtype, []))
        if (tensor.shape, tensor.dtype) != (shape, dtype):
            raise ValueError(f"ranks disagree on {name}: {list(tensor.shape)} {tensor.dtype} and {list(shape)} {dtype}")
        tensor.chunks.append(chunk)
    return {name: Whole(t.shape, t.dtype, tuple(sorted(t.chunks, key=_place))) for name, t in sorted(found.items())}


def _place(chunk: Chunk) -> Box:
    return chunk.box


def _sync(path: Path) -> None:
    """Forces a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
