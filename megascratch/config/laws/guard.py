"""The laws of checks during training and of force-resume; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.fields import SECTION_OF, nearest
from megascratch.config.resume_rules import CAN_BE_FORCED


def forced_by_a_known_name(force_resume: list[str] | None) -> str | None:
    """Only settings that a resume can refuse can be forced."""
    wrong = [name for word in force_resume or () if (name := word.replace("-", "_")) not in CAN_BE_FORCED]
    if not wrong:
        return None
    known = [name for name in wrong if name in SECTION_OF]
    if known:
        return (
            f"force-resume {known[0]}: it may change without force, or cannot be forced: "
            "see megascratch pretrain --print-resume-rules"
        )
    return f"force-resume {wrong[0]} is not a setting{nearest(wrong[0], CAN_BE_FORCED)}"


def rollback_has_a_checkpoint(on_bad_step: str, save_interval: int) -> str | None:
    """Rolling back needs a checkpoint."""
    if on_bad_step != "rollback" or save_interval > 0:
        return None
    return "on-bad-step rollback needs checkpoints during training: give save-interval, the steps between checkpoints"


def rollback_needs_an_endless_order(on_bad_step: str, data_order: str) -> str | None:
    """A run that skips samples needs more of them; Megatron's order is built for a fixed number."""
    if on_bad_step != "rollback" or data_order != "megatron":
        return None
    return (
        "on-bad-step rollback needs more samples than data-order megatron is built for: "
        "use on-bad-step skip, or data-order keyed"
    )


def something_makes_a_bad_step(
    on_bad_step: str, check_for_nan_in_loss_and_grad: bool, check_for_spiky_loss: bool
) -> str | None:
    """An action for bad steps needs a check that finds them."""
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
