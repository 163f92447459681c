"""Two runs' numbers in, how far they are apart out, in the unit of their precision.

fp64, fp32: relative to the largest element; the limit is 1e-9 or 1e-5.

bf16, fp16: beside what rounding costs one process; the limit is 2, for the law reads

    ‖a layout - one process‖  <=  2 ‖one process - one process in fp32‖

with the lengths of vectors: each step's loss and norm, each weight's gradient of a step, and what each weight has moved
by in the end. (A largest element is a matter of chance, above all in a tensor of eight.) The right side is the longest
over all steps and a few ways to cut the batch into micro-batches, since it is chance, too, how far one run strays. And
no tensor's is shorter than its share, by its number of elements, of the whole model's: where a tensor's own rounding
happened to cancel in one process it need not on a layout. A single number's length does not settle as that of many
does: it is at least three times the root mean square over all steps and cuts.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from megascratch.verification.run_layout import KINDS, RunRecord, difference

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5}
TWICE, SPREAD = 2.0, 3.0


class Tolerance(Protocol):
    """What counts as far."""

    limit: float  # of `far`
    alike: dict[str, float]  # kind -> the largest relative difference that is rounding

    def far(self, kind: str, step: int, tensor: str, a: Tensor, b: Tensor) -> float:
        """How far b is from a, the reference; infinite for other shapes and for nan."""

    def weights(self, trace: RunRecord) -> dict[str, Tensor]:
        """What of a run's last weights is compared."""

    def told(self, far: float) -> str:
        """In words."""


class Relative:
    """For precisions in which a layout must agree to so many digits."""

    def __init__(self, tolerance: float):
        self.limit, self.alike = tolerance, dict.fromkeys(KINDS, tolerance)

    def far(self, kind: str, step: int, tensor: str, a: Tensor, b: Tensor) -> float:
        return difference(a, b)

    def weights(self, trace: RunRecord) -> dict[str, Tensor]:
        return trace.params

    def told(self, far: float) -> str:
        return f"{far:.1e}"


class Rounding:
    """For precisions whose rounding shows.

    Args:
        exact: one process in fp32.
        rounded: the same in the low precision, the batch cut in several ways.
    """

    def __init__(self, exact: RunRecord, rounded: Sequence[RunRecord]):
        self.limit = TWICE
        self.lengths: dict[tuple[str, str], float] = defaultdict(float)
        self.alike = dict.fromkeys(KINDS, 0.0)
        numbers: dict[tuple[str, str], list[float]] = defaultdict(list)
        for kind, pairs in (found for run in rounded for found in vectors(exact, run)):
            lengths = {name: (b - a).norm().item() for name, (a, b) in pairs.items()}
            whole = math.hypot(*lengths.values()) / math.sqrt(sum(a.numel() for a, _ in pairs.values()))
            for name, (a, b) in pairs.items():
                share = whole * math.sqrt(a.numel())
                self.lengths[kind, name] = max(self.lengths[kind, name], lengths[name], share)
                self.alike[kind] = max(self.alike[kind], TWICE * difference(a, b))
                if a.numel() == 1:
                    numbers[kind, name].append(lengths[name])
        for key, seen in numbers.items():
            self.lengths[key] = max(self.lengths[key], SPREAD * math.hypot(*seen) / math.sqrt(len(seen)))

    def far(self, kind: str, step: int, tensor: str, a: Tensor, b: Tensor) -> float:
        if a.shape != b.shape:
            return math.inf
        length = (b.double() - a.double()).norm().item()
        if step == 0:  # initial weights are rounded once, wherever they lie
            return math.inf if length else 0.0
        far = length / max(self.lengths[kind, tensor], 1e-300)
        return far if math.isfinite(far) else math.inf

    def weights(self, trace: RunRecord) -> dict[str, Tensor]:
        return trace.moved

    def told(self, far: float) -> str:
        return f"{far:.1f} times what rounding costs one process"


def vectors(a: RunRecord, b: RunRecord) -> Iterator[tuple[str, dict[str, tuple[Tensor, Tensor]]]]:
    """(kind, name -> both vectors in fp64) of each step, and of the end."""
    for step in range(len(a.losses)):
        yield "loss", {"loss": (_scalar(a.losses[step]), _scalar(b.losses[step]))}
        yield "grad norm", {"grad norm": (_scalar(a.norms[step]), _scalar(b.norms[step]))}
        yield "gradients", {name: (grad.double(), b.grads[step][name].double()) for name, grad in a.grads[step].items()}
    yield "weights", {name: (moved, b.moved[name]) for name, moved in a.moved.items()}


def _scalar(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)
