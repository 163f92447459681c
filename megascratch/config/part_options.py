"""Options of registered parts: `--layer-options slope=0.1` sets the keyword-only parameter `slope` of the parts in use
that have one. An option has the type of its default value.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.part_shapes import own_parameters
from megascratch.config.registry import REGISTERED, Kind, is_registered, words

Options = tuple[tuple[str, Any], ...]
"""(parameter, value): hashable, so that it can be a part of a layer's spec."""

_TRUTH = {"true": True, "false": False}


class PartName(NamedTuple):
    """A part that the settings select."""

    kind: Kind
    name: str


def options_of(part: PartName, given: Sequence[str] | None) -> Options:
    """The values of the parameters of a registered part that are given; no options for a part of the package.

    Args:
        given: texts NAME=VALUE.

    Raises: UserError for a value of another type than the default, or a parameter that is needed and not given.
    """
    options = []
    values = dict(_split(text) for text in given or ())
    for parameter in parameters_of(part):
        if parameter.name in values:
            value = _typed(part, parameter, values[parameter.name])
            options.append((parameter.name, value))
        elif parameter.default is inspect.Parameter.empty:
            raise UserError(
                f"the {words(part.kind)} {part.name} needs the option {parameter.name}: give {parameter.name}=VALUE"
            )
    return tuple(options)


def parameters_of(part: PartName) -> list[inspect.Parameter]:
    """The options that a part has."""
    if not is_registered(part.kind, part.name):
        return []
    return own_parameters(part.kind, REGISTERED[part.kind][part.name].value)


def _split(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


def problem_with(flag: str, given: Sequence[str] | None, parts: Sequence[PartName]) -> str | None:
    """What is wrong with the options that are given to parts; None if nothing is.

    Args:
        flag: the setting that has them, for a message.
    """
    known: list[str] = []
    for part in parts:
        known += [parameter.name for parameter in parameters_of(part)]
    seen: set[str] = set()
    for text in given or ():
        name, value = _split(text)
        if not name.isidentifier() or not value:
            return f"{flag} ({text}) must be NAME=VALUE"
        if name in seen:
            return f"{flag} gives {name} twice: give it once"
        if name not in known:
            use = f"they have {', '.join(known)}" if known else "they have none: remove it"
            chosen = ", ".join(part.name for part in parts)
            return f"{flag}: {name} is not an option of the parts in use ({chosen}); {use}"
        seen.add(name)
    try:
        for part in parts:
            options_of(part, given)
    except UserError as error:
        return f"{flag}: {error}"
    return None


def _typed(part: PartName, parameter: inspect.Parameter, text: str) -> Any:
    """The text as a value of the type that the default has; without a default a number if it is one."""
    default = parameter.default
    if isinstance(default, bool):
        found: Any = _TRUTH.get(text.lower())
        wanted = "true or false"
    elif isinstance(default, int):
        found = _number(text, int)
        wanted = "a whole number"
    elif isinstance(default, float):
        found = _number(text, float)
        wanted = "a number"
    elif isinstance(default, str):
        return text
    else:
        return _free(text)
    if found is None:
        raise UserError(
            f"the option {parameter.name} of the {words(part.kind)} {part.name} must be {wanted} like its default "
            f"{default}, not '{text}'"
        )
    return found


def _number(text: str, kind: type[int] | type[float]) -> int | float | None:
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _free(text: str) -> Any:
    """A value whose type is not known: true, false, a number, or the text."""
    for value in (_TRUTH.get(text.lower()), _number(text, int), _number(text, float)):
        if value is not None:
            return value
    return text
