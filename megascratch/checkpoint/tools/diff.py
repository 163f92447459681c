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
    largest: float = 0.0  # absolute difference; nan if a value that is not finite differs from its counterpart
    scale: float = 0.0  # largest absolute value of the first

    @property
    def relative(self) -> float:
        """The largest difference over the largest value."""
        return self.largest / self.scale if self.scale else (math.inf if self.largest else 0.0)


def differences(one: OpenCheckpoint, other: OpenCheckpoint) -> Iterator[TensorDifference]:
    """Compares all tensors, in the order of their names; equal ones are listed too. Raises: DamagedError."""
    ours, theirs = one.manifest.tensors, other.manifest.tensors
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs or name not in ours:
            where, whole = ("first", ours[name]) if name in ours else ("second", theirs[name])
            yield TensorDifference(name, f"only in the {where}", math.prod(whole.shape))
        else:
            yield _of_tensor(name, one, other)


def _of_tensor(name: str, one: OpenCheckpoint, other: OpenCheckpoint) -> TensorDifference:
    a, b = one.manifest.tensors[name], other.manifest.tensors[name]
    elements = math.prod(a.shape)
    if a.shape != b.shape:
        return TensorDifference(name, f"shape {list(a.shape)} and {list(b.shape)}", elements)
    different, largest, scale = 0, 0.0, 0.0
    for mine, yours in _common(name, one, a, other):
        scale = max(scale, _largest(mine))
        if a.dtype == b.dtype and torch.equal(_bits(mine), _bits(yours)):
            continue
        if a.dtype == b.dtype:
            unequal = (_bits(mine).view(mine.numel(), -1) != _bits(yours).view(mine.numel(), -1)).any(1)
        else:
            unequal = mine.to(torch.float64) != yours.to(torch.float64)
        different += int(unequal.sum())
        apart = (mine.to(torch.float64) - yours.to(torch.float64)).abs()
        apart = apart.masked_fill((mine == yours) | (mine.isnan() & yours.isnan()), 0.0)
        largest = math.nan if apart.isnan().any() or math.isnan(largest) else max(largest, apart.max().item())
    if a.dtype != b.dtype:
        return TensorDifference(name, f"type {_type_name(a)} and {_type_name(b)}", elements, different, largest, scale)
    return TensorDifference(name, "values" if different else "", elements, different, largest, scale)


def _type_name(whole: TensorEntry) -> str:
    return str(whole.dtype).removeprefix("torch.")


def _common(name: str, one: OpenCheckpoint, a: TensorEntry, other: OpenCheckpoint) -> Iterator[tuple[Tensor, Tensor]]:
    """Each chunk of the tensor in the first checkpoint, with the same box of the second."""
    for chunk in a.chunks:
        yield one.chunk(name, chunk), other.box(name, chunk.box)


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()].to(torch.float64).abs()
    return finite.max().item() if finite.numel() else 0.0


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def config_diff(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields where two JSON values differ: the path as a.b.c and both values, None for a missing one."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from config_diff(one.get(key), other.get(key), f"{place}.{key}" if place else str(key))
    elif one != other:
        yield place, one, other
