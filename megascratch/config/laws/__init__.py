"""Checks that settings and world size are consistent, and reports every broken law in one SettingError.

A law is a plain function that returns a message or None. A message of type `Broken` suggests values; only those are
shown that satisfy all laws when the user follows them literally. The parameters of a law name the settings that it
reads (and `world_size`). A law is not checked if one of its settings is outside its own range, or is
unknown although the law needs it.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any, get_args

from megascratch.config.errors import SettingError
from megascratch.config.fields import RANGES
from megascratch.config.laws import (
    batch,
    batch_schedule,
    context,
    data,
    delta,
    layout,
    model,
    optim,
    parts,
    patterns,
    run,
)
from megascratch.config.ranges import out_of_range
from megascratch.config.remedies import WORLD, Broken, complaint
from megascratch.config.resolve import Values, derive

LAWS: list[Callable[..., str | Broken | None]] = [
    *model.LAWS,
    *patterns.LAWS,
    *layout.LAWS,
    *context.LAWS,
    *delta.LAWS,
    *batch.LAWS,
    *batch_schedule.LAWS,
    *data.LAWS,
    *optim.LAWS,
    *parts.LAWS,
    *run.LAWS,
]


def _scope(law: Callable[..., str | Broken | None]) -> dict[str, bool]:
    """Setting that a law reads -> whether it may be None."""
    parameters = inspect.signature(law).parameters.items()
    return {name: type(None) in get_args(parameter.annotation) for name, parameter in parameters}


SCOPES = {law: _scope(law) for law in LAWS}
SCOPE_OF = {law.__name__: scope for law, scope in SCOPES.items()}


def validate(given: Values, world_size: int) -> None:
    """Checks every law on the settings, which are derived first.

    Raises one SettingError with all broken laws, one per line, each with the numbers and the nearest valid values.
    """
    messages = broken_laws(given, derive(given, world_size), world_size)
    if messages:
        raise SettingError("\n".join(messages))


def broken_laws(
    given: Values, derived: Values, world_size: int, unread: Collection[str] = ()
) -> list[str]:
    """The messages of `validate`, one per broken law. Laws that read an `unread` setting are not checked.

    Args:
        given: the settings as the user gave them: when the user follows a suggestion, they are derived again.
        derived: what `derive` made of them.
    """
    wrong, broken = _check(derived, world_size, unread)
    problems_now = wrong.keys() | broken.keys()
    messages = list(wrong.values())
    for name, problem in broken.items():
        if isinstance(problem, str):
            messages.append(problem)
            continue

        def passes(setting: str, value: Any, name: str = name) -> bool:
            world_then = value if setting == WORLD else world_size
            changed = {} if setting == WORLD else {setting: value}
            derived_then = derive({**given, **changed}, world_then)
            new_wrong, new_broken = _check(derived_then, world_then, unread)
            if any(setting in SCOPE_OF[law] for law in new_broken):
                return False
            problems_then = new_wrong.keys() | new_broken.keys()
            return problems_then <= problems_now - {name}

        messages.append(complaint(problem, passes))
    return messages


def _check(
    derived: Values, world_size: int, unread: Collection[str]
) -> tuple[dict[str, str], dict[str, str | Broken]]:
    """(setting -> what is wrong with its own value, name of a law -> its message)."""
    values = {**derived, WORLD: world_size}
    wrong = out_of_range(values, RANGES)
    broken: dict[str, str | Broken] = {}
    for law in LAWS:
        problem = _apply(law, values, {*wrong, *unread})
        if problem is not None:
            broken[law.__name__] = problem
    return wrong, broken


def _apply(
    law: Callable[..., str | Broken | None], values: dict[str, Any], wrong: Collection[str]
) -> str | Broken | None:
    """The message of a law; None if it holds or cannot be checked."""
    scope = SCOPES[law]
    for name, may_be_none in scope.items():
        if name in wrong or (values[name] is None and not may_be_none):
            return None
    return law(**{name: values[name] for name in scope})
