"""Rewrites checkpoints: into another number of files, another precision, or the average of several steps.

Runs in one process with memory for a few chunks. A checkpoint has no parallel layout, so none is chosen here: only the
number of files and the type of the tensors change.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megascratch.checkpoint.backend.backend import alone, begin
from megascratch.checkpoint.format.boxes import whole_box
from megascratch.checkpoint.format.file_format import FileExtent, arrange, split_box
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.format.manifest import TensorEntry
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
from megascratch.checkpoint.save import step_contents, write_file
from megascratch.checkpoint.steps import step_folder
from megascratch.checkpoint.validation_loss import read_loss
from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import MODEL, ShardedTensor
from megascratch.storage.path import Place, storage_path

PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
WEIGHTS = "param."
MASTERS = "optim.master."


class TensorSource(NamedTuple):
    """A tensor of the new checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[Box], Tensor]  # in any type; converted when it is written


def reshard(
    source: OpenCheckpoint,
    output: str | Place,
    *,
    files: int = 1,
    dtype: str | None = None,
    weights_only: bool = False,
) -> Place:
    """Writes `{output}/step_...` with the same tensors in `files` files of about equal size. Returns its path.

    Args:
        dtype: of the weights, a key of PRECISIONS. Towards bf16 and fp16 the old weights become the masters; in the
            other direction the masters become the weights. So no precision is lost, and a run of that precision can
            resume.
        weights_only: leave out the optimizer: a checkpoint to evaluate, generate and fine-tune from.

    Raises: UserError if the step already exists, DamagedError, DiskError.
    """
    tensors = {name: _same(source, name, whole) for name, whole in source.manifest.tensors.items()}
    state = source.manifest.state
    loss = read_loss(source.path)
    if not math.isnan(loss):
        state = state | {"valid_loss": loss}
    if dtype is not None:
        tensors = _converted(tensors, PRECISIONS[dtype])
        state = _with_precision(state, dtype)
    if weights_only:
        tensors = {name: new for name, new in tensors.items() if name.startswith(MODEL)}
    return write(output, source.manifest.step, tensors, state, files)


def average(sources: Sequence[OpenCheckpoint], output: str | Place, *, files: int = 1) -> Place:
    """Writes the mean of the weights of several steps (of the masters, if there are any) and of the state that layers
    keep, rounded once. The optimizer is left out, because its moments have no meaningful mean. Step, settings and
    integers are those of the last source.

    Raises: UserError if they belong to different models or are fewer than two; DamagedError, DiskError.
    """
    if len(sources) < 2:
        raise UserError(f"an average needs two or more checkpoints, not {len(sources)}")
    last = sources[-1].manifest
    tensors = {}
    for name, whole in last.tensors.items():
        if name.startswith(MODEL) and not whole.dtype.is_floating_point:
            tensors[name] = _same(sources[-1], name, whole)
        elif name.startswith(MODEL):
            finest = MASTERS + name.removeprefix(WEIGHTS)
            if finest not in last.tensors:
                finest = name
            for source in sources:
                _require_shape(source, finest, whole.shape)
            tensors[name] = TensorSource(whole.shape, whole.dtype, _mean(sources, finest))
    state = last.state | {"averaged_steps": [source.manifest.step for source in sources]}
    state.pop("valid_loss", None)  # it was not measured with the averaged weights
    return write(output, last.step, tensors, state, files)


def _require_shape(source: OpenCheckpoint, name: str, shape: tuple[int, ...]) -> None:
    there = source.manifest.tensors.get(name)
    if there is None:
        raise UserError(f"{source.path} belongs to another model: {name} is missing")
    if there.shape != shape:
        raise UserError(
            f"{source.path} belongs to another model: {name} has shape {list(there.shape)}, not {list(shape)}"
        )


def write(
    output: str | Place,
    step: int,
    tensors: dict[str, TensorSource],
    state: dict[str, Any],
    files: int = 1,
) -> Place:
    """Writes a step in one process, its chunks one after the other into `files` files. Raises: UserError, DiskError."""
    total = sum(math.prod(new.shape) * new.dtype.itemsize for new in tensors.values())
    groups: list[list[FileExtent]] = [[] for _ in range(files)]
    done = 0
    for name, new in tensors.items():
        for slot in _slots(name, new, total // files):
            number = min(files - 1, done * files // max(total, 1))
            groups[number].append(slot)
            done += slot.tensor.nbytes
    with alone(storage_path(output)) as inside:
        draft = begin(step_folder(output, step), inside, total)
        try:
            tables = []
            for number, group in enumerate(groups):
                layout = arrange(group)
                tables.append(
                    write_file(draft, draft.file_name(number), layout, _raw(tensors, layout.slots))
                )
            draft.commit(step_contents(step, state, tables, draft.table_name))
        except BaseException:
            draft.discard()
            raise
    return draft.final


def _slots(name: str, new: TensorSource, most: int) -> list[FileExtent]:
    """The chunks of a tensor, of at most `most` bytes each, without their content."""
    nothing = torch.empty(new.shape, dtype=new.dtype, device="meta")
    return split_box(ShardedTensor(name, new.shape, whole_box(new.shape), nothing, 0), most)


def _raw(
    tensors: dict[str, TensorSource], slots: Sequence[FileExtent]
) -> Callable[[int], memoryview]:
    def raw(index: int) -> memoryview:
        slot = slots[index]
        return raw_bytes(tensors[slot.name].read(slot.box).to(slot.tensor.dtype))

    return raw


def _same(source: OpenCheckpoint, name: str, whole: TensorEntry) -> TensorSource:
    return TensorSource(whole.shape, whole.dtype, lambda box: source.box(name, box))


def _mean(sources: Sequence[OpenCheckpoint], name: str) -> Callable[[Box], Tensor]:
    def mean(box: Box) -> Tensor:
        total = torch.zeros(box.shape, dtype=torch.float64)
        for source in sources:
            total += source.box(name, box)
        return total / len(sources)

    return mean


def _converted(tensors: dict[str, TensorSource], dtype: torch.dtype) -> dict[str, TensorSource]:
    """Converts the weights to another type, and keeps masters only if that type needs them."""
    main = torch.float64 if dtype == torch.float64 else torch.float32  # of masters and state
    found = {}
    trained: set[str] = set()  # the others are frozen, or the optimizer was left out
    for name, new in tensors.items():
        if name.startswith((WEIGHTS, MASTERS)):
            continue
        found[name] = new._replace(dtype=main) if new.dtype.is_floating_point else new
        if not name.startswith(MODEL):
            trained.add(name.split(".", 2)[2])  # optim.STATE.NAME
    for name, new in tensors.items():
        if name.startswith(WEIGHTS):
            master = MASTERS + name.removeprefix(WEIGHTS)
            finest = tensors.get(master, new)
            found[name] = finest._replace(dtype=dtype)
            if name.removeprefix(WEIGHTS) in trained and dtype.itemsize == 2:
                found[master] = finest._replace(dtype=main)
    return dict(sorted(found.items()))


def _with_precision(state: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The settings in the state, with the new precision."""
    config = state.get("config")
    if not isinstance(config, dict) or "optim" not in config:
        return state
    flags = {name: name == dtype for name in ("bf16", "fp16", "fp64")}
    return state | {"config": config | {"optim": config["optim"] | flags}}
