"""The laws of what is watched and what may change on resume; see `laws.py` for how a law is read."""

from collections.abc import Callable

from megascratch.config.fields import SECTION_OF, nearest
from megascratch.config.resume_rules import CAN_BE_FORCED


def forced_by_a_known_name(force_resume: list[str] | None) -> str | None:
    """What is forced is a setting that a resume can refuse."""
    wrong = [name for word in force_resume or () if (name := word.replace("-", "_")) not in CAN_BE_FORCED]
    if not wrong:
        return None
    known = [name for name in wrong if name in SECTION_OF]
    if known:
        return (
            f"force-resume {known[0]}: it may change without force, or never: "
            "megascratch pretrain --print-resume-rules tells which"
        )
    return f"force-resume {wrong[0]} is no setting{nearest(wrong[0], CAN_BE_FORCED)}"


def rollback_has_a_checkpoint(on_bad_step: str, save_interval: int) -> str | None:
    """Rolling back needs something to roll back to."""
    if on_bad_step != "rollback" or save_interval > 0:
        return None
    return "on-bad-step rollback goes back to the last checkpoint: give save-interval, the steps between checkpoints"


def rollback_needs_an_endless_order(on_bad_step: str, data_order: str) -> str | None:
    """A run that jumps over samples reads more of them; Megatron's order has as many as the run was made for."""
    if on_bad_step != "rollback" or data_order != "megatron":
        return None
    return (
        "on-bad-step rollback reads past the samples that data-order megatron was made for: "
        "use on-bad-step skip, or data-order keyed"
    )


def something_makes_a_bad_step(
    on_bad_step: str, check_for_nan_in_loss_and_grad: bool, check_for_spiky_loss: bool
) -> str | None:
    """What to do needs a reason to do it."""
    if on_bad_step == "stop" or check_for_nan_in_loss_and_grad or check_for_spiky_loss:
        return None
    return (
        f"on-bad-step {on_bad_step} needs check-for-nan-in-loss-and-grad or check-for-spiky-loss: "
        "without one no step is bad"
    )


LAWS: list[Callable[..., str | None]] = [
    forced_by_a_known_name,
    rollback_has_a_checkpoint,
    rollback_needs_an_endless_order,
    something_makes_a_bad_step,
]
