"""Verifies a layout: runs it, compares it with the one-process run of the same model, and returns a verdict."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from megascratch.config.fields import flat
from megascratch.config.resolve import Found, resolve_derived
from megascratch.verification.diagnosis import diagnose, diagnose_disagreement
from megascratch.verification.layouts import Case
from megascratch.verification.pool import Pool, RankFailed
from megascratch.verification.run_layout import (
    Difference,
    RanksDisagree,
    RunRecord,
    gather,
    one_process,
    run_on_layout,
    train_on_rank,
)
from megascratch.verification.tolerance import TOLERANCE, Relative, Rounding, Tolerance


@dataclass(frozen=True)
class Verdict:
    """The result of verifying one layout."""

    case: Case
    # kind -> the largest difference; empty if there was no run to compare
    worst: dict[str, Difference]
    limit: float  # a larger difference has failed
    message: str | None  # why it failed; None if it passed
    seconds: float

    @property
    def passed(self) -> bool:
        return self.message is None


def verify_case(
    case: Case, steps: int, precision: str, pool: Pool, run: Callable = train_on_rank
) -> Verdict:
    """Runs a case by calling `run(config, steps)` on each rank. A layout that crashes or hangs has failed."""
    started = time.monotonic()
    worst: dict[str, Difference] = {}
    yardstick: Tolerance = Relative(0.0)
    try:
        yardstick = yardstick_of(case, steps, precision)
        reference = reference_run(alone(case), steps)
        measured = run_on_layout(pool, case, steps, run)
        worst, first = _compared(reference, measured, yardstick)
        message = None
        if first is not None:
            message = diagnose(first, reference, measured, case, yardstick)
    except FloatingPointError as error:
        message = f"the one-process run: {error}"
    except RankFailed as error:
        message = f"no result: {error.first_cause}"
    except RanksDisagree as error:
        message = diagnose_disagreement(error, case)
    return Verdict(case, worst, yardstick.limit, message, time.monotonic() - started)


def _compared(
    reference: RunRecord, measured: RunRecord, yardstick: Tolerance
) -> tuple[dict[str, Difference], Difference | None]:
    """The largest difference of each kind, and the first that is too large."""
    worst: dict[str, Difference] = {}
    first = None
    for found in differences(reference, measured, yardstick):
        if found.kind not in worst or found.value > worst[found.kind].value:
            worst[found.kind] = found
        if first is None and not found.value <= yardstick.limit:
            first = found
    return worst, first


def differences(
    reference: RunRecord, measured: RunRecord, yardstick: Tolerance
) -> Iterator[Difference]:
    """Everything that the layout law compares, in the order in which the run computes it."""

    def far(
        kind: str, step: int, a: dict[str, Tensor], b: dict[str, Tensor]
    ) -> Iterator[Difference]:
        only_in_b = b.keys() - a.keys()
        for name in [*a, *only_in_b]:
            value = math.inf
            if name in a and name in b:
                value = yardstick.far(kind, step, name, a[name], b[name])
            bare = name.removeprefix("param.").removeprefix("grad.")
            yield Difference(kind, step, bare, value)

    yield from far("weights", 0, reference.initial, measured.initial)
    for step, grads in enumerate(reference.grads, 1):
        loss = _number("loss", reference.losses, step)
        yield from far("loss", step, loss, _number("loss", measured.losses, step))
        yield from far("gradients", step, grads, measured.grads[step - 1])
        norm = _number("grad norm", reference.norms, step)
        yield from far("grad norm", step, norm, _number("grad norm", measured.norms, step))
    yield from far(
        "weights", len(reference.losses), yardstick.weights(reference), yardstick.weights(measured)
    )


def _number(name: str, numbers: list[float], step: int) -> dict[str, Tensor]:
    return {name: torch.tensor(numbers[step - 1], dtype=torch.float64)}


def yardstick_of(case: Case, steps: int, precision: str) -> Tolerance:
    """The tolerance for a precision. Raises: FloatingPointError if a run in one process fails."""
    if precision in TOLERANCE:
        return Relative(TOLERANCE[precision])
    rounded = alone(case)
    exact = reference_run(rounded.but(bf16=False, fp16=False), steps)
    whole = rounded.config.training.micro_batch_size
    runs = []
    sizes = {whole, 2, 1} if case.config.training.calculate_per_token_loss else {whole}
    for size in sorted(sizes, reverse=True):
        if whole % size == 0:
            runs.append(reference_run(rounded.but(micro_batch_size=size), steps))
    if not all(math.isfinite(norm) for run in runs for norm in run.norms):
        raise FloatingPointError(f"its gradients overflow in {precision}: nothing can be compared")
    return Rounding(exact, runs)


def alone(case: Case) -> Case:
    """The reference run of a case, which all layouts of a model share."""
    return Case("one process", one_process(case.config))


def reference_run(case: Case, steps: int) -> RunRecord:
    """The reference run, in this process. It is cached, because all layouts of a model share it."""
    return _run_of(json.dumps(flat(case.config)), steps)


@lru_cache(maxsize=16)
def _run_of(settings: str, steps: int) -> RunRecord:
    """`settings`: resolved, as JSON, since a setting may be a list, which no cache can look up."""
    config = resolve_derived(json.loads(settings), Found())
    return gather([train_on_rank(config, steps)])
