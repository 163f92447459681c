"""The steps of a run and what shall be kept in, the others deleted out; the newest sound one never.

A step goes in one call, a rename or the deletion of its manifest, so that no half of it is ever found under its name.
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
    """What is kept: a step that any of the three asks for.

    Args:
        last: the newest so many, at least 1.
        every: the steps that are multiples of this; 0: none.
        best: so many with the lowest validation loss.
    """

    last: int = 1
    every: int = 0
    best: int = 0


class RetainedStep(NamedTuple):
    """A step as retention sees it."""

    path: Place
    number: int
    valid_loss: float  # nan: not known, or of no token; never one of the best
    problem: str  # '' where manifest, sizes and headers are sound


def scan(folder: str | Place) -> list[RetainedStep]:
    """The steps of a folder, newest first; no tensor is read."""
    return [_look_at(path) for path in list_steps(folder)]


def _look_at(path: Place) -> RetainedStep:
    problem = problem_of(path)
    return RetainedStep(path, step_number(path), math.nan if problem else known_loss(path), problem)


def expired(found: list[RetainedStep], keep: RetentionPolicy) -> list[RetainedStep]:
    """Those that may go, oldest first. The newest `last` are counted among the sound ones, so a damaged step takes no
    other's place; a damaged one newer than the oldest that is kept stays, for people to look at."""
    sound = [step for step in found if not step.problem]
    if not sound:
        return []
    last = sound[: max(keep.last, 1)]
    told = [step for step in sound if math.isfinite(step.valid_loss)]
    best = sorted(told, key=lambda step: (step.valid_loss, -step.number))[: keep.best]
    every = [step for step in sound if keep.every and step.number % keep.every == 0]
    kept = {step.number for step in (*last, *best, *every)}
    kept |= {step.number for step in found if step.number > last[-1].number}
    return [step for step in reversed(found) if step.number not in kept]


def verify_newest(found: list[RetainedStep], keep: RetentionPolicy) -> list[RetainedStep]:
    """The same, with the newest `keep.last` sound steps read to the last byte: what turns out damaged is marked, and
    the next one takes its place."""
    left, known = max(keep.last, 1), []
    for step in found:
        if left and not step.problem:
            step = step._replace(problem=next(problems(step.path), ""))
            left -= not step.problem
        known.append(step)
    return known


def prune(folder: str | Place, keep: RetentionPolicy, verify: bool = False) -> list[Place]:
    """Deletes what may go; the paths that are gone. A step that cannot be deleted is warned about.

    Args:
        verify: read the newest ones before their elders go; a writer that has just written them need not.
    """
    gone, found = [], scan(folder)
    for step in expired(verify_newest(found, keep) if verify else found, keep):
        try:
            step_at(step.path).delete()
        except (OSError, StoreError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(printable(f"{step.path} could not be deleted: {reason}"), stacklevel=2)
        else:
            gone.append(step.path)
    return gone
