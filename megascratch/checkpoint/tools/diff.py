"""Compares two checkpoints of any layouts, tensor by tensor and setting by setting."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megascratch.checkpoint.format.manifest import TensorEntry
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs. If the shapes differ, or only one checkpoint has it, no elements are compared."""

    name: str
    reason: str  # 'values', 'shape', 'type', 'only in the first', 'only in the second', '' for equal bits
    elements: int
    different: int = 0  # elements whose bits differ
    largest: float = (
        0.0  # absolute difference; nan if a value that is not finite differs from its counterpart
    )
    scale: float = 0.0  # largest absolute value of the first

    @property
    def relative(self) -> float:
        """The largest difference over the largest value."""
        if self.scale:
            return self.largest / self.scale
        return math.inf if self.largest else 0.0


def differences(one: OpenCheckpoint, other: OpenCheckpoint) -> Iterator[TensorDifference]:
    """Compares all tensors, in the order of their names; equal ones are listed too. Raises: DamagedError."""
    ours = one.manifest.tensors
    theirs = other.manifest.tensors
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            yield TensorDifference(name, "only in the first", math.prod(ours[name].shape))
        elif name not in ours:
            yield TensorDifference(name, "only in the second", math.prod(theirs[name].shape))
        else:
            yield _of_tensor(name, one, other)


def _of_tensor(name: str, one: OpenCheckpoint, other: OpenCheckpoint) -> TensorDifference:
    a = one.manifest.tensors[name]
    b = other.manifest.tensors[name]
    elements = math.prod(a.shape)
    if a.shape != b.shape:
        return TensorDifference(name, f"shape {list(a.shape)} and {list(b.shape)}", elements)
    different = 0
    largest = 0.0
    scale = 0.0
    for chunk in one.chunks(name):
        mine = one.chunk(name, chunk)
        yours = other.box(name, chunk.box)
        scale = max(scale, _largest(mine))
        if a.dtype == b.dtype and torch.equal(_bits(mine), _bits(yours)):
            continue
        mine_64 = mine.to(torch.float64)
        yours_64 = yours.to(torch.float64)
        if a.dtype == b.dtype:
            rows = mine.numel()
            unequal_bytes = _bits(mine).view(rows, -1) != _bits(yours).view(rows, -1)
            unequal = unequal_bytes.any(1)  # [elements, bytes] -> [elements]
        else:
            unequal = mine_64 != yours_64
        different += int(unequal.sum())
        same_value = (mine == yours) | (mine.isnan() & yours.isnan())
        distance = (mine_64 - yours_64).abs().masked_fill(same_value, 0.0)
        if distance.isnan().any():
            largest = math.nan
        elif not math.isnan(largest):
            largest = max(largest, distance.max().item())
    if a.dtype != b.dtype:
        reason = f"type {_type_name(a)} and {_type_name(b)}"
    elif different:
        reason = "values"
    else:
        reason = ""
    return TensorDifference(name, reason, elements, different, largest, scale)


def _type_name(whole: TensorEntry) -> str:
    return str(whole.dtype).removeprefix("torch.")


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()].to(torch.float64).abs()
    return finite.max().item() if finite.numel() else 0.0


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def config_diff(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields where two JSON values differ: the path as a.b.c and both values, None for a missing one."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            path = f"{place}.{key}" if place else str(key)
            yield from config_diff(one.get(key), other.get(key), path)
    elif one != other:
        yield place, one, other
