"""Runs an action on all ranks, or on the first one, so that all ranks get the results or all raise the same error."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

from megascratch.checkpoint.errors import (
    CheckpointError,
    DamagedError,
    DiskError,
    LeaseLostError,
)
from megascratch.config.errors import UserError
from megascratch.parallel.control import Control
from megascratch.storage.store import StoreError

T = TypeVar("T")

KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (CheckpointError, UserError, DamagedError, DiskError, LeaseLostError)
}


class _Failure(NamedTuple):
    """An error of one rank, as the other ranks hear of it."""

    rank: int
    kind: str
    text: str


def on_all_ranks(control: Control, action: Callable[[], T]) -> T:
    """Runs `action` on every rank and returns this rank's result, once all have succeeded.

    Raises: on all ranks the error of the first rank that failed, with its rank number in the text: a UserError keeps
    its kind, an OSError or a StoreError becomes a DiskError, and anything else a CheckpointError. On the rank that
    failed, the original error is the cause.
    """
    result: T | None = None
    mine: _Failure | None = None
    cause: Exception | None = None
    try:
        result = action()
    except Exception as error:
        mine = _Failure(control.rank, *_kind_and_text(error))
        cause = error
    first = control.reduce(mine, _first_failure)
    if first is not None:
        text = first.text
        if control.size > 1:
            text = f"rank {first.rank}: {text}"
        raise KINDS[first.kind](text) from cause
    return cast(T, result)  # without a failure every rank has its result


def on_first_rank(control: Control, action: Callable[[], T]) -> T:
    """Runs `action` on the first rank only and returns its result on all ranks. Raises as `on_all_ranks`."""
    result = on_all_ranks(control, action if control.is_first else lambda: None)
    return cast(T, control.broadcast(result))


def _first_failure(one: _Failure | None, other: _Failure | None) -> _Failure | None:
    return other if one is None else one


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
