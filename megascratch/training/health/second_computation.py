"""Computes a bad step a second time, before anything is done about it: an error of the machine does not repeat, and one
of the data or the settings does. Dropout and order are functions of seed and sample, so the two computations are equal
to the last bit unless something is broken.

    wrong at first, and then      the run says              and does
    right, with the same numbers  correct result            uses it
    right, with other numbers     transient error           uses the second one
    wrong again, the same         persistent error          what --on-bad-step says
    wrong again, with others      two different errors      what --on-bad-step says

--error-injection-rate tries this out: all ranks inject an error into the numbers that they judge, at steps that depend
on the seed alone, each once, and none after a restart.
"""

import math
import random
from collections.abc import Callable

from megascratch.config.resolve import ResolvedTraining
from megascratch.config.settings import GuardConfig
from megascratch.runtime.launch_environment import launch_environment
from megascratch.training.trainer import Judge, StepResult, not_finite

Compute = Callable[[Judge, bool], StepResult]
"""Computes the step. Called with its judge, and whether it is the first computation."""
Numbers = tuple[float, float]
"""Loss and gradient norm."""


class SecondComputation:
    """Takes steps, and the bad ones twice.

    Args:
        judge: says what is wrong with the numbers of a step.
        say: prints a line for the user, on the first rank only.
    """

    def __init__(
        self,
        guard: GuardConfig,
        training: ResolvedTraining,
        judge: Judge,
        say: Callable[[str], None],
    ):
        self.on = guard.rerun_bad_steps
        self.training = training
        self.judge = judge
        self.say = say
        self.may_inject = launch_environment().attempt == 0
        self.injected: set[int] = set()

    def take(self, step: int, compute: Compute) -> StepResult:
        """The result of the computation that counts. Called by all ranks, which judge the same numbers."""
        kind = self._kind_to_inject(step)
        seen: list[Numbers] = []

        def judged(number: int) -> Judge:
            def judge(loss: float, grad_norm: float) -> str:
                if kind == "persistent_error" or (kind == "transient_error" and number == 0):
                    loss = math.nan
                seen.append((loss, grad_norm))
                if kind == "correct_result" and number == 0:
                    return "a check is injected"
                wrong = self.judge(loss, grad_norm)
                return wrong or (not_finite(loss, grad_norm) if kind is not None else "")

            return judge

        first = compute(judged(0), True)
        if not self.on or not first.wrong:
            return first
        second = compute(judged(1), False)
        injected = f" (injected: {kind})" if kind is not None else ""
        self.say(f"step {step}: {first.wrong}{injected}; {_verdict(second.wrong, seen)}")
        exit_code = max(first.exit_code, second.exit_code)
        return second._replace(exit_code=exit_code, saving=first.saving or second.saving)

    def _kind_to_inject(self, step: int) -> str | None:
        rate = self.training.error_injection_rate
        if not rate or not self.may_inject or step in self.injected:
            return None
        if random.Random(f"error injection {self.training.seed} {step}").randrange(rate):
            return None
        self.injected.add(step)
        return self.training.error_injection_type


def _verdict(wrong: str, seen: list[Numbers]) -> str:
    """What two computations say together."""
    before, after = seen
    same = repr(before) == repr(after)  # nan equals nan here
    if not wrong and same:
        return "a second computation gives the same numbers: a correct result, which is used"
    if not wrong:
        loss = f"the loss {after[0]:.6g}, which is used"
        return f"a second computation gives {loss}: a transient error, look at the machine"
    if same:
        return (
            "a second computation gives the same: a persistent error, of the data, the settings or a machine that "
            "always errs"
        )
    return f"a second computation differs, and {wrong}: two different errors, look at the machine"
