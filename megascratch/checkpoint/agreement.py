"""An action on every rank in, every rank's result or one error on all ranks out: nobody goes on alone."""

from collections.abc import Callable
from typing import TypeVar

from megascratch.config.errors import UserError
from megascratch.parallel.collectives import all_gather_objects
from megascratch.parallel.mesh import Axis

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A rank failed for a reason that is not the user's."""


def everyone(world: Axis, action: Callable[[], T]) -> list[T]:
    """Runs `action` here and on all other ranks of `world`; the results in rank order.

    Raises: UserError on all ranks where one raised UserError or OSError (disk full, no permission), otherwise
    CheckpointError on all ranks; the text tells the first rank that failed, its own error is the cause there.
    """
    result: T | None = None
    failure: tuple[bool, str] | None = None
    cause: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure, cause = (isinstance(error, UserError | OSError), _text(error)), error
    answers = all_gather_objects((result, failure), world)
    for rank, (_, failed) in enumerate(answers):
        if failed is not None:
            mendable, text = failed
            if world.size > 1:
                text = f"rank {rank}: {text}"
            raise (UserError(text) if mendable else CheckpointError(text)) from cause
    return [answer for answer, _ in answers]


def first(world: Axis, action: Callable[[], T]) -> T:
    """Runs `action` on the first rank alone and gives its result to all. Raises as `everyone`."""
    return everyone(world, action if world.is_first else lambda: None)[0]  # type: ignore[return-value]


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
