"""The laws of saving checkpoints and keeping them; see `laws.py` for how a law is read."""

from collections.abc import Callable

from megascratch.config.wording import choice, multiples_near


def best_needs_a_validation_at_each_save(
    keep_best_n_checkpoints: int, save_interval: int, eval_interval: int
) -> str | None:
    """A checkpoint's rank among the best is the validation loss of its own weights."""
    if eval_interval > 0 and save_interval % eval_interval == 0:
        return None
    if eval_interval == 0:
        return (
            f"keep-best-n-checkpoints ({keep_best_n_checkpoints}) needs validations, eval-interval is 0: use "
            f"{save_interval or 'the steps between validations'}"
        )
    return (
        f"keep-best-n-checkpoints ({keep_best_n_checkpoints}) needs a validation at every save: save-interval "
        f"({save_interval}) must divide by eval-interval ({eval_interval}): use save-interval "
        f"{choice(multiples_near(save_interval, eval_interval))}"
    )


def retained_steps_are_saved(save_retain_interval: int, save_interval: int) -> str | None:
    """Only a step that is saved can be kept."""
    if save_interval == 0 or save_retain_interval % save_interval == 0:
        return None
    return (
        f"save-retain-interval ({save_retain_interval}) must divide by save-interval ({save_interval}): use "
        f"{choice(multiples_near(save_retain_interval, save_interval))}"
    )


LAWS: list[Callable[..., str | None]] = [best_needs_a_validation_at_each_save, retained_steps_are_saved]
