"""Runs an action on all ranks, or on the first one, so that all ranks get the results or all raise the same error."""

from collections.abc import Callable
from typing import TypeVar, cast

from megascratch.checkpoint.errors import (
    CheckpointError,
    DamagedError,
    DiskError,
    LeaseLostError,
)
from megascratch.config.errors import UserError
from megascratch.parallel.collectives import all_gather_objects
from megascratch.parallel.mesh import Axis
from megascratch.storage.store import StoreError

T = TypeVar("T")

KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (CheckpointError, UserError, DamagedError, DiskError, LeaseLostError)
}


def on_all_ranks(world: Axis, action: Callable[[], T]) -> list[T]:
    """Runs `action` on every rank of `world` and returns the results in rank order.

    Raises: on all ranks the error of the first rank that failed, with its rank number in the text: a UserError keeps
    its kind, an OSError or a StoreError becomes a DiskError, and anything else a CheckpointError. On the rank that
    failed, the original error is the cause.
    """
    result: T | None = None
    failure: tuple[str, str] | None = None
    cause: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = _kind_and_text(error)
        cause = error
    answers = all_gather_objects((result, failure), world)
    for rank, (_, failed) in enumerate(answers):
        if failed is not None:
            kind, text = failed
            if world.size > 1:
                text = f"rank {rank}: {text}"
            raise KINDS[kind](text) from cause
    return [cast(T, answer) for answer, _ in answers]  # without a failure every rank has its result


def on_first_rank(world: Axis, action: Callable[[], T]) -> T:
    """Runs `action` on the first rank only and returns its result on all ranks. Raises as `on_all_ranks`."""
    return on_all_ranks(world, action if world.is_first else lambda: None)[0]  # type: ignore[return-value]


def _kind_and_text(error: Exception) -> tuple[str, str]:
    """The kind and the text of an error, as they are sent to the other ranks."""
    if isinstance(error, StoreError):
        return DiskError.__name__, str(error)
    if isinstance(error, UserError):
        kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in KINDS)
        return kind, str(error)
    if isinstance(error, OSError):
        return DiskError.__name__, str(error)
    return CheckpointError.__name__, f"{type(error).__name__}: {error}"
