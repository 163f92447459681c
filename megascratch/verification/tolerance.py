"""The tolerance of the layout law: how far a layout's run may be from the one-process run in a given precision.

fp64, fp32: the difference relative to the largest element; the limit is 1e-9 or 1e-5.

bf16, fp16: the difference relative to the rounding error of one process; the limit is 2, so the law is

    ‖a layout - one process‖  <=  2 ‖one process - one process in fp32‖

The norms are over vectors: the loss and the gradient norm of each step, the gradient of each weight in each step, and
the total change of each weight. (A largest element would depend on chance, above all in a tensor of eight elements.)
The right side is the largest value over all steps and over a few ways to cut the batch into micro-batches, because the
rounding error of a single run depends on chance, too. It has two lower bounds:

* for a tensor, its share of the entire model's rounding error, by number of elements: if rounding errors happen to
  cancel in one process, they need not cancel on a layout;
* for a single number, three times the root mean square over all steps and cuts, because the error of a single number
  varies more than that of a vector.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from megascratch.verification.run_layout import KINDS, RunRecord, difference

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5}
TWICE = 2.0  # a layout may be this many rounding errors away
SPREAD = 3.0  # how much the error of a single number varies, in root mean squares


class Tolerance(Protocol):
    """Measures differences, and says which are too large."""

    limit: float  # a larger value of `far` fails
    alike: dict[str, float]  # kind -> the largest relative difference that counts as rounding

    def far(self, kind: str, step: int, tensor: str, a: Tensor, b: Tensor) -> float:
        """How far b is from the reference a; infinite for different shapes and for nan."""

    def weights(self, trace: RunRecord) -> dict[str, Tensor]:
        """The tensors that are compared at the end of a run: its weights, or their changes."""

    def describe(self, far: float) -> str:
        """A value of `far` as text."""


class Relative:
    """For fp64 and fp32: a layout must agree to a given number of digits."""

    def __init__(self, tolerance: float):
        self.limit = tolerance
        self.alike = dict.fromkeys(KINDS, tolerance)

    def far(self, kind: str, step: int, tensor: str, a: Tensor, b: Tensor) -> float:
        return difference(a, b)

    def weights(self, trace: RunRecord) -> dict[str, Tensor]:
        return trace.params

    def describe(self, far: float) -> str:
        return f"{far:.1e}"


class Rounding:
    """For bf16 and fp16: differences are relative to the rounding error of one process.

    Args:
        exact: the one-process run in fp32.
        rounded: the same run in the low precision, with the batch cut in several ways.
    """

    def __init__(self, exact: RunRecord, rounded: Sequence[RunRecord]):
        self.limit = TWICE
        self.alike = dict.fromkeys(KINDS, 0.0)
        # (kind, tensor) -> the norm of its error
        self.lengths: dict[tuple[str, str], float] = defaultdict(float)
        # the errors of each single number
        self._numbers: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in rounded:
            for kind, pairs in vectors(exact, run):
                self._add(kind, pairs)
        for key, errors in self._numbers.items():
            root_mean_square = math.hypot(*errors) / math.sqrt(len(errors))
            self.lengths[key] = max(self.lengths[key], SPREAD * root_mean_square)

    def _add(self, kind: str, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Adds the rounding errors of the tensors of one kind in one step: name -> (exact, rounded)."""
        errors: dict[str, float] = {}
        elements = 0
        for name, (exact, rounded) in pairs.items():
            errors[name] = (rounded - exact).norm().item()
            elements += exact.numel()
        per_element = math.hypot(*errors.values()) / math.sqrt(elements)
        for name, (exact, rounded) in pairs.items():
            share = per_element * math.sqrt(exact.numel())
            self.lengths[kind, name] = max(self.lengths[kind, name], errors[name], share)
            self.alike[kind] = max(self.alike[kind], TWICE * difference(exact, rounded))
            if exact.numel() == 1:
                self._numbers[kind, name].append(errors[name])

    def far(self, kind: str, step: int, tensor: str, a: Tensor, b: Tensor) -> float:
        if a.shape != b.shape:
            return math.inf
        length = (b.double() - a.double()).norm().item()
        if step == 0:  # initial weights are rounded once, on every layout
            return math.inf if length else 0.0
        far = length / max(self.lengths[kind, tensor], 1e-300)
        return far if math.isfinite(far) else math.inf

    def weights(self, trace: RunRecord) -> dict[str, Tensor]:
        return trace.moved

    def describe(self, far: float) -> str:
        return f"{far:.1f} times the rounding error of one process"


def vectors(a: RunRecord, b: RunRecord) -> Iterator[tuple[str, dict[str, tuple[Tensor, Tensor]]]]:
    """Yields (kind, name -> both vectors in fp64) for each step, and for the weights at the end."""
    for step in range(len(a.losses)):
        yield "loss", {"loss": (_scalar(a.losses[step]), _scalar(b.losses[step]))}
        yield "grad norm", {"grad norm": (_scalar(a.norms[step]), _scalar(b.norms[step]))}
        gradients = {}
        for name, grad in a.grads[step].items():
            gradients[name] = (grad.double(), b.grads[step][name].double())
        yield "gradients", gradients
    moved = b.moved
    yield "weights", {name: (change, moved[name]) for name, change in a.moved.items()}


def _scalar(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)
