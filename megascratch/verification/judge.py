"""A case in, a verdict out: the layout's run beside the one-process run of the same model."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from megascratch.config.fields import with_fields
from megascratch.config.settings import Config
from megascratch.verification.diagnosis import diagnose, diagnose_disagreement
from megascratch.verification.layouts import Case
from megascratch.verification.measure import (
    KINDS,
    Difference,
    RanksDisagree,
    Trace,
    difference,
    gathered,
    one_process,
    trace,
    train_on_rank,
)
from megascratch.verification.pool import Pool, RankFailed

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5}


@dataclass(frozen=True)
class Verdict:
    """What one layout showed."""

    case: Case
    worst: dict[str, Difference]  # kind -> the largest; empty when there was no run to compare
    tolerance: dict[str, float]
    message: str | None  # why it failed
    seconds: float

    @property
    def passed(self) -> bool:
        return self.message is None


def judge(case: Case, steps: int, precision: str, pool: Pool, run: Callable = train_on_rank) -> Verdict:
    """Runs a case by `run(config, steps)` on each rank. A layout that crashes or hangs has failed."""
    started = time.monotonic()
    worst, tolerance, message = _compared(case, steps, precision, pool, run)
    return Verdict(case, worst, tolerance, message, time.monotonic() - started)


def _compared(
    case: Case, steps: int, precision: str, pool: Pool, run: Callable
) -> tuple[dict[str, Difference], dict[str, float], str | None]:
    """(largest differences, tolerances, what is wrong)."""
    try:
        reference = alone(one_process(case.config), steps)
        tolerance = tolerances(case.config, steps, precision)
    except FloatingPointError as error:
        return {}, {}, f"the one-process run: {error}"
    try:
        measured = trace(pool, case.config, steps, run)
    except RankFailed as error:
        return {}, tolerance, f"no result: {error.first_cause}"
    except RanksDisagree as error:
        return {}, tolerance, diagnose_disagreement(error, case.config)
    worst: dict[str, Difference] = {}
    first = None
    for found in differences(reference, measured):
        if found.kind not in worst or found.value > worst[found.kind].value:
            worst[found.kind] = found
        if first is None and not found.value <= tolerance[found.kind]:
            first = found
    if first is None:
        return worst, tolerance, None
    return worst, tolerance, diagnose(first, reference, measured, case.config, tolerance)


def differences(reference: Trace, measured: Trace) -> Iterator[Difference]:
    """Everything that the law speaks of, in the order in which it came about."""
    yield from _tensors("weights", 0, reference.initial, measured.initial)
    for step, (a, b) in enumerate(zip(reference.losses, measured.losses, strict=True), 1):
        yield Difference("loss", step, "loss", _relative(a, b))
        yield from _tensors("gradients", step, reference.grads[step - 1], measured.grads[step - 1])
        yield Difference("grad norm", step, "grad norm",
                         _relative(reference.norms[step - 1], measured.norms[step - 1]))  # fmt: skip
    yield from _tensors("weights", len(reference.losses), reference.params, measured.params)


def _tensors(kind: str, step: int, reference: dict[str, Tensor], measured: dict[str, Tensor]) -> Iterator[Difference]:
    for name in [*reference, *(measured.keys() - reference.keys())]:
        both = name in reference and name in measured
        far = difference(reference[name], measured[name]) if both else float("inf")
        yield Difference(kind, step, name.removeprefix("param.").removeprefix("grad."), far)


def _relative(a: float, b: float) -> float:
    far = abs(a - b) / max(abs(a), 1e-300)
    return far if far == far else float("inf")


def tolerances(config: Config, steps: int, precision: str) -> dict[str, float]:
    """Kind -> the largest difference that is rounding. For bf16: twice what bf16 differs from fp32 in one process, seen
    both with the whole batch at once and sample by sample, since it is chance how far one run strays."""
    if precision in TOLERANCE:
        return dict.fromkeys(KINDS, TOLERANCE[precision])
    rounded = one_process(config)
    exact = alone(with_fields(rounded, {"bf16": False}), steps)
    found = dict.fromkeys(KINDS, 0.0)
    for size in (rounded.training.micro_batch_size, 1):
        for item in differences(exact, alone(with_fields(rounded, {"micro_batch_size": size}), steps)):
            found[item.kind] = max(found[item.kind], 2 * item.value)
    return found


@lru_cache(maxsize=8)
def alone(config: Config, steps: int) -> Trace:
    """The reference, in this process; layouts of one model share it."""
    return gathered([train_on_rank(config, steps)])
