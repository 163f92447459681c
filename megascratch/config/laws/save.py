"""The laws of saving and keeping checkpoints; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.remedies import Broken, Remedy, each, near_multiples
from megascratch.config.suggestions import divisors_near


def best_needs_a_validation_at_each_save(
    keep_best_n_checkpoints: int, save_interval: int, eval_interval: int
) -> Broken | None:
    """The best checkpoints are chosen by the validation loss of their own weights."""
    if eval_interval > 0 and save_interval % eval_interval == 0:
        return None
    if eval_interval == 0:
        return Broken(
            f"keep-best-n-checkpoints ({keep_best_n_checkpoints}) needs validations, but eval-interval is 0",
            [Remedy("eval_interval", [[save_interval or 1]])],
        )
    return Broken(
        f"keep-best-n-checkpoints ({keep_best_n_checkpoints}) needs a validation at every save: save-interval "
        f"({save_interval}) must be divisible by eval-interval ({eval_interval})",
        [
            Remedy("save_interval", near_multiples(save_interval, eval_interval)),
            Remedy("eval_interval", each(divisors_near(save_interval, eval_interval))),
        ],
    )


def retained_steps_are_saved(save_retain_interval: int, save_interval: int) -> Broken | None:
    """Only a step that is saved can be kept."""
    if save_interval == 0 or save_retain_interval % save_interval == 0:
        return None
    return Broken(
        f"save-retain-interval ({save_retain_interval}) must be divisible by save-interval ({save_interval})",
        [Remedy("save_retain_interval", near_multiples(save_retain_interval, save_interval))],
    )


LAWS: list[Callable[..., str | Broken | None]] = [best_needs_a_validation_at_each_save, retained_steps_are_saved]
