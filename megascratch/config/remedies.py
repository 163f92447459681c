"""Builds the message of a broken law, with the nearest values of settings that would fix it.

A law only knows which values are valid for itself, so each value is tried against all laws before it is suggested:

    Broken("global-batch-size (10) must be divisible by ... (2 x 4)",
           [Remedy("global_batch_size", near_multiples(10, 8))])
    -> global-batch-size (10) must be divisible by ... (2 x 4): use global-batch-size 8 or 16
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

MOST_TRIED = 32  # values in one direction
MOST_SHOWN = 8
MOST_ON_ONE_MACHINE = 64  # ranks
MOST_ROOT = 1_000_000  # divisors are searched up to here: a number of 60 bits would take minutes
WORLD = "world_size"  # the number of processes, which cannot be changed by a setting


class Remedy(NamedTuple):
    """Values of one setting, the others unchanged."""

    setting: str
    rows: Sequence[Iterable[Any]]
    """The first valid value of each row is suggested, for example the nearest one below and the nearest one above."""
    more: str = ""
    """' or more' or ' or less' if the value is the end of a range."""


class Broken(NamedTuple):
    """A broken law."""

    law: str
    """What must be true, with the numbers."""
    remedies: Sequence[Remedy] = ()
    otherwise: str = ""
    """What else the user can do; always shown."""


Passes = Callable[[str, Any], bool]
"""Whether this law would hold, and no new one be broken, with another value of one setting."""


def complaint(broken: Broken, passes: Passes) -> str:
    """The message to the user: the law and the remedies that work."""
    proposals: list[str] = []
    has_use = False  # whether the verb before the last proposal was 'use'
    for remedy in broken.remedies:
        values = _passing(remedy, passes)
        if not values:
            continue
        if remedy.setting == WORLD:
            what = "process" if values == [1] else "processes"
            proposals.append(f"start {choice(values)}{remedy.more} {what}{_one_machine(values)}")
            has_use = False
        elif has_use:
            proposals.append(_words(remedy, values))
        else:
            proposals.append(f"use {_words(remedy, values)}")
            has_use = True
    if broken.otherwise:
        proposals.append(broken.otherwise)
    if not proposals:
        return f"{broken.law}: changing one setting is not enough, change several"
    return f"{broken.law}: {_listed(proposals, ', or ')}"


def near_multiples(number: int, step: int, least: int = 1) -> list[list[int]]:
    """The multiples of `step` from `number` downwards, and those above it."""
    below = max(number, 0) // step * step
    downwards = [below - step * count for count in range(MOST_TRIED)]
    upwards = [below + step * (count + 1) for count in range(MOST_TRIED)]
    rows = []
    for row in (downwards, upwards):
        rows.append([value for value in row if value >= least])
    return rows


def divisors(number: int) -> list[int]:
    """All divisors in rising order; [] below 1.

    For a number above MOST_ROOT squared, only the divisors up to MOST_ROOT and number / divisor for each.
    """
    largest = min(math.isqrt(max(number, 0)), MOST_ROOT)
    found: set[int] = set()
    for divisor in range(1, largest + 1):
        if number % divisor == 0:
            found |= {divisor, number // divisor}
    return sorted(found)


def divisors_near(number: int, near: int) -> list[int]:
    """All divisors, those nearest to `near` first."""
    return sorted(divisors(number), key=lambda divisor: abs(divisor - near))


def each(values: Iterable[Any]) -> list[list[Any]]:
    """Suggests each of the values."""
    return [[value] for value in values]


def choice(values: Sequence[object], near: int | None = None, most: int = 8) -> str:
    """'1', '1 or 2', '1, 2 or 3'; only the `most` numbers nearest to `near` of a long list."""
    kept = list(values)
    if len(kept) > most:
        by_distance = sorted(kept, key=lambda value: abs(int(str(value)) - (near or 0)))
        nearest = by_distance[:most]
        kept = [value for value in kept if value in nearest]
    return _listed([str(value) for value in kept], " or ")


def _passing(remedy: Remedy, passes: Passes) -> list[Any]:
    """The first value of each row that passes, sorted, without duplicates."""
    passing: list[Any] = []
    for row in remedy.rows:
        for value in row:
            if passes(remedy.setting, value):
                if value not in passing:
                    passing.append(value)
                break
    return sorted(passing[:MOST_SHOWN])


def _words(remedy: Remedy, values: Sequence[Any]) -> str:
    """The setting and the values that it should have."""
    shown: list[object] = []
    for value in values:
        if isinstance(value, list):
            shown.append(" ".join(map(str, value)))
        else:
            shown.append(value)
    name = remedy.setting.replace("_", "-")
    return f"{name} {choice(shown)}{remedy.more}"


def _one_machine(ranks: Sequence[int]) -> str:
    """The flag that starts these ranks, if one machine may have as many."""
    if ranks[-1] > MOST_ON_ONE_MACHINE:
        return ""
    return f" (--nproc-per-node {choice(ranks)} on one machine)"


def _listed(words: Sequence[str], last: str) -> str:
    """The words with commas between them, and `last` before the last one."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + last + words[-1]
