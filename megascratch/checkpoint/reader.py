"""`load`: a checkpoint and what this rank wants in, the wanted tensors filled in place out, whatever layout wrote it.

For each wanted box the overlapping chunks are read, each once per rank and checked against its crc32; a chunk that
overlaps nothing wanted is not read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megascratch.checkpoint.agreement import everyone, first
from megascratch.checkpoint.files import read
from megascratch.checkpoint.folders import find
from megascratch.checkpoint.manifest import Chunk, Manifest, Whole, box_text, read_manifest, volume
from megascratch.config.errors import UserError
from megascratch.parallel.held import Held
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Box


def load(path: str | Path, held: list[Held], world: Axis, *, prefix: str = "", cast: bool = False) -> dict[str, Any]:
    """Fills every `held.tensor`, copies included, and returns the saved state; called by all ranks of `world`.

    Args:
        path: a step folder, or a folder of them (its newest readable step).
        prefix: of the names that matter, e.g. "param."; the ranks together must want exactly the checkpoint's names
            that begin so, that no layer is left behind unseen.
        cast: a tensor of another floating type is converted; without it another type is an error.

    Raises: UserError on all ranks, naming file and tensor, where something is missing, of another shape, or damaged.
    """
    step, manifest = first(world, lambda: _open(path))
    held = [item for item in held if volume(item.box)]  # a rank may hold nothing but padding of a tensor
    wanted = everyone(world, lambda: {item.name for item in held})
    everyone(world, lambda: _fill(step, manifest, held, prefix, set().union(*wanted), cast))
    return manifest.state


def _open(path: str | Path) -> tuple[Path, Manifest]:
    step = find(path)
    return step, read_manifest(step)


def _fill(step: Path, manifest: Manifest, held: list[Held], prefix: str, wanted: set[str], cast: bool) -> None:
    _require_same_names(step, {name for name in manifest.tensors if name.startswith(prefix)}, wanted)
    readers: dict[Chunk, list[tuple[Held, Box]]] = {}
    for item in held:
        whole = manifest.tensors[item.name]
        _require_same_tensor(step, whole, item, cast)
        for chunk, common in _overlaps(step, whole.chunks, item):
            readers.setdefault(chunk, []).append((item, common))
    for chunk in sorted(readers):  # file by file
        dtype = manifest.tensors[readers[chunk][0][0].name].dtype
        try:
            source = read(step / chunk.file, chunk.key, chunk.box.shape, dtype, chunk.crc32)
        except UserError as error:
            raise UserError(f"{error}; it holds {readers[chunk][0][0].name}{box_text(chunk.box)}") from error
        for item, common in readers[chunk]:
            item.tensor[_inside(common, item.box)].copy_(source[_inside(common, chunk.box)])


def _require_same_names(step: Path, there: set[str], wanted: set[str]) -> None:
    missing, unwanted = sorted(wanted - there), sorted(there - wanted)
    if missing:
        raise UserError(f"{step} has no tensor {_few(missing)}: it was written by another model or other settings")
    if unwanted:
        raise UserError(f"{step} has tensors that this model does not have: {_few(unwanted)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")


def _require_same_tensor(step: Path, whole: Whole, item: Held, cast: bool) -> None:
    if whole.shape != tuple(item.whole_shape):
        raise UserError(f"{step}: {item.name} has shape {list(whole.shape)}, this model needs {list(item.whole_shape)}")
    floating = whole.dtype.is_floating_point and item.dtype.is_floating_point
    if whole.dtype != item.dtype and not (cast and floating):
        raise UserError(f"{step}: {item.name} has {whole.dtype}, this run needs {item.dtype}: set the same precision")


def _overlaps(step: Path, chunks: Iterable[Chunk], item: Held) -> list[tuple[Chunk, Box]]:
    """The chunks that hold a part of a wanted box, with that part. The chunks are disjoint, so volumes prove cover."""
    found = [(chunk, common) for chunk in chunks if (common := chunk.box.overlap(item.box)) is not None]
    covered = sum(volume(common) for _, common in found)
    if covered != volume(item.box):
        raise UserError(f"{step}: {item.name}{box_text(item.box)} lies outside the tensor's {covered:,} saved elements")
    return found


def _inside(box: Box, outer: Box) -> tuple[slice, ...]:
    """Where a box lies in a tensor that holds `outer`."""
    return box.moved(tuple(-start for start in outer.start)).slices
