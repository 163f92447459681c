"""What a broken law proposes: values of a setting, each tried against all laws before a user reads of it.

A law knows the values that are legal for itself alone; whether they are legal altogether only a trial tells:

    Broken("global-batch-size (10) must be divisible by ... (2 x 4)",
           [Remedy("global_batch_size", near_multiples(10, 8))])
    -> global-batch-size (10) must be divisible by ... (2 x 4): use global-batch-size 8 or 16
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from megascratch.config.suggestions import choice

MOST_TRIED = 32  # values in one direction
MOST_SHOWN = 8
WORLD = "world_size"  # stands for the number of processes, which is no setting


class Remedy(NamedTuple):
    """Values of one setting, the others unchanged."""

    setting: str
    rows: Sequence[Iterable[Any]]
    """Of each row the first value that passes is proposed: the nearest one downwards and upwards, say."""
    more: str = ""
    """' or more', ' or less': the value is the end of a range."""


class Broken(NamedTuple):
    """A law's complaint."""

    law: str
    """What must hold, with the numbers."""
    remedies: Sequence[Remedy] = ()
    otherwise: str = ""
    """What can be done besides; always shown."""


Passes = Callable[[str, Any], bool]
"""Whether the settings would be legal, as far as this law is concerned, with another value of one of them."""


def complaint(broken: Broken, passes: Passes) -> str:
    """The law with those of its remedies that pass."""
    proposals = list[str]()
    said_use = False
    for remedy in broken.remedies:
        values = _passing(remedy, passes)
        if not values:
            continue
        if remedy.setting == WORLD:
            proposals.append(f"start {choice(values)}{remedy.more} processes")
        else:
            proposals.append(f"{'' if said_use else 'use '}{_words(remedy, values)}")
        said_use = remedy.setting != WORLD
    if broken.otherwise:
        proposals.append(broken.otherwise)
    if not proposals:
        return f"{broken.law}: no other value of one setting alone is legal, change several"
    return f"{broken.law}: {', or '.join(filter(None, [', '.join(proposals[:-1]), proposals[-1]]))}"


def near_multiples(number: int, step: int, least: int = 1) -> list[list[int]]:
    """The multiples of `step` from `number` downwards, and those upwards."""
    below = max(number, 0) // step * step
    downwards = [below - step * count for count in range(MOST_TRIED)]
    upwards = [below + step * (count + 1) for count in range(MOST_TRIED)]
    return [[value for value in row if value >= least] for row in (downwards, upwards)]


def each(values: Iterable[Any]) -> list[list[Any]]:
    """Every value a proposal of its own."""
    return [[value] for value in values]


def _passing(remedy: Remedy, passes: Passes) -> list[Any]:
    found: list[Any] = []
    for row in remedy.rows:
        value = next((value for value in row if passes(remedy.setting, value)), None)
        if value is not None and value not in found:
            found.append(value)
    return sorted(found[:MOST_SHOWN])


def _words(remedy: Remedy, values: Sequence[Any]) -> str:
    shown = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
    return f"{remedy.setting.replace('_', '-')} {choice(shown)}{remedy.more}"
