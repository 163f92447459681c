"""Deletes checkpoints that the retention policy no longer keeps. The newest valid one is never deleted.

A step disappears in one call, a rename or the deletion of its manifest, so no reader ever finds half of it.
"""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

from megascratch.checkpoint.backend.backend import step_at
from megascratch.checkpoint.open_checkpoint import problems
from megascratch.checkpoint.steps import list_steps, problem_of, step_number
from megascratch.checkpoint.validation_loss import known_loss
from megascratch.config.printable import printable
from megascratch.storage.path import Place
from megascratch.storage.store import StoreError


@dataclass(frozen=True)
class RetentionPolicy:
    """Which steps are kept: each one that at least one of the three rules keeps.

    Args:
        last: how many of the newest, at least 1.
        every: keep the steps that are multiples of this; 0: none.
        best: how many with the lowest validation loss.
    """

    last: int = 1
    every: int = 0
    best: int = 0


class RetainedStep(NamedTuple):
    """A step as retention sees it."""

    path: Place
    number: int
    valid_loss: float  # nan: not known, or measured on no token; never one of the best
    problem: str  # '' if manifest, sizes and headers are valid


def scan(folder: str | Place) -> list[RetainedStep]:
    """Lists the steps of a folder, newest first; reads no tensor."""
    return [_look_at(path) for path in list_steps(folder)]


def _look_at(path: Place) -> RetainedStep:
    problem = problem_of(path)
    return RetainedStep(path, step_number(path), math.nan if problem else known_loss(path), problem)


def expired(found: list[RetainedStep], keep: RetentionPolicy) -> list[RetainedStep]:
    """The steps that can be deleted, oldest first. Only valid steps count towards `keep.last`, so a damaged step never
    displaces a valid one. A damaged step that is newer than the oldest of the kept `last` stays, for inspection."""
    valid = [step for step in found if not step.problem]
    if not valid:
        return []
    last = valid[: max(keep.last, 1)]
    with_loss = [step for step in valid if math.isfinite(step.valid_loss)]
    best = sorted(with_loss, key=lambda step: (step.valid_loss, -step.number))[: keep.best]
    every = [step for step in valid if keep.every and step.number % keep.every == 0]
    kept = {step.number for step in (*last, *best, *every)}
    kept |= {step.number for step in found if step.number > last[-1].number}
    return [step for step in reversed(found) if step.number not in kept]


def verify_newest(found: list[RetainedStep], keep: RetentionPolicy) -> list[RetainedStep]:
    """Returns the same steps after reading every byte of the newest `keep.last` valid ones. A step that turns out to be
    damaged is marked so, and the next older one is read in its place."""
    left = max(keep.last, 1)
    known = []
    for step in found:
        if left and not step.problem:
            step = step._replace(problem=next(problems(step.path), ""))
            if not step.problem:
                left -= 1
        known.append(step)
    return known


def prune(folder: str | Place, keep: RetentionPolicy, verify: bool = False) -> list[Place]:
    """Deletes the expired steps and returns their paths. Warns about a step that cannot be deleted.

    Args:
        verify: read the newest steps to the last byte before older ones are deleted; not needed right after a save.
    """
    deleted = []
    found = scan(folder)
    if verify:
        found = verify_newest(found, keep)
    for step in expired(found, keep):
        try:
            step_at(step.path).delete()
        except (OSError, StoreError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(printable(f"{step.path} could not be deleted: {reason}"), stacklevel=2)
        else:
            deleted.append(step.path)
    return deleted
