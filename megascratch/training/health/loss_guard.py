"""Detects bad steps: a loss or gradient norm that is not finite, or a loss spike. All ranks come to the same verdict,
because they judge numbers that all ranks agree on. Pure arithmetic over `TrainState`.
"""

import math
import statistics

from megascratch.config.settings import GuardConfig
from megascratch.training.state import TrainState

STEPS_TO_JUDGE = 10
"""After this many steps in a row without a learned token a run ends, even if each step has its own log line."""


class LossGuard:
    """Compares each step with the losses of the previous good steps. These are kept in the state, so that a resumed
    run judges its steps in the same way."""

    def __init__(self, guard: GuardConfig, state: TrainState):
        self.guard, self.state = guard, state

    def judge(self, loss: float, grad_norm: float) -> str:
        """What is wrong with a step; '' if nothing is."""
        guard = self.guard
        if guard.check_for_nan_in_loss_and_grad and (wrong := not_finite(loss, grad_norm)):
            return wrong
        past = self.state.recent_losses
        if not guard.check_for_spiky_loss or len(past) < guard.spiky_loss_window:
            return ""
        median = statistics.median(past)
        if median <= 0 or loss <= guard.spiky_loss_factor * median:  # nothing is a multiple of 0
            return ""
        return (
            f"the loss {loss:.6g} is {loss / median:.2f} times the median {median:.6g} of the last {len(past)} "
            f"(--spiky-loss-factor {guard.spiky_loss_factor:g})"
        )

    def good(self, loss: float) -> None:
        """Records a step that was applied: resets the count of bad steps and keeps the loss for later comparisons."""
        self.state.bad_steps = 0
        if self.guard.check_for_spiky_loss and math.isfinite(loss):
            self.state.recent_losses = [*self.state.recent_losses, loss][-self.guard.spiky_loss_window :]


def not_finite(loss: float, grad_norm: float) -> str:
    """The judge that needs no settings: says which number is not finite; '' if both are."""
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return "" if math.isfinite(loss) else f"the loss is {loss}"


class NothingLearnedError(Exception):
    """No token was learned where at least one is needed: in the steps of a log line, or in a validation."""


def nothing_learned(what: str, numbers: str) -> str:
    """The message with which a run stops, or is refused, because no token is learned."""
    return (
        f"no token of {what} is learned ({numbers}): a loss mask, the end of a document or padding covers all of "
        "them; look at the loss mask of the data, or use a longer --seq-length or a larger --global-batch-size"
    )


def nothing_updated(wrong: str, step: int) -> str:
    """The message with which a run stops after a bad step."""
    return f"{wrong} at step {step}: nothing was updated; look at the data of this step, or lower --lr"
