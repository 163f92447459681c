"""Reads and checks small JSON files that users may have edited, such as manifests, summaries and tokenizer files.

    require_fields(record, {"tokens": COUNT, "model": optional(TEXT)}, "corpus.json")
    -> UserError: corpus.json is damaged: tokens must be a whole number, 0 or more, not 'x'

A missing field is not an error: older versions wrote fewer fields.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.printable import shown

LARGEST_NUMBER = (1 << 63) - 1


class Kind(NamedTuple):
    """The values that a field may have."""

    words: str
    """What the value must be, to follow 'must be' in a message."""
    holds: Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST_NUMBER


COUNT = Kind("a whole number, 0 or more", lambda value: _is_integer(value) and value >= 0)
INTEGER = Kind("a whole number", _is_integer)
NUMBER = Kind("a number", lambda value: type(value) is float or _is_integer(value))
TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object {...}", lambda value: isinstance(value, dict))
ANYTHING = Kind("anything", lambda value: True)


def optional(kind: Kind) -> Kind:
    """A value of this kind, or null."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """A list whose items are of this kind."""

    def holds(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        if length is not None and len(value) != length:
            return False
        return all(kind.holds(item) for item in value)

    of = "" if kind is ANYTHING else f", each {kind.words}"
    number = "" if length is None else f" of {length}"
    return Kind(f"a list{number}{of}", holds)


def object_of(kind: Kind) -> Kind:
    """An object whose values are of this kind."""

    def holds(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return all(kind.holds(item) for item in value.values())

    return Kind(f"an object, each value {kind.words}", holds)


def parse_json(content: bytes | str) -> Any:
    """Parses JSON. Raises: ValueError whose text says in one line what is wrong."""
    try:
        if isinstance(content, bytes):
            content = content.decode("utf-8-sig")
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except ValueError as error:
        raise ValueError("a number in it has too many digits") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_object(content: bytes | str, name: object) -> dict[str, Any]:
    """Parses a file's content, which must be a JSON object. Raises: UserError naming the file."""
    try:
        record = parse_json(content)
    except ValueError as error:
        raise UserError(f"{name} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise UserError(
            f"{name} is damaged: it contains {value_in_words(record)}, not an object {{...}}"
        )
    return record


def misfit(record: Mapping[str, Any], fields: Mapping[str, Kind]) -> str | None:
    """What is wrong with the first field that has a wrong value; None: all fields are valid."""
    for name, kind in fields.items():
        if name not in record:
            continue
        value = record[name]
        if not kind.holds(value):
            return f"{name} must be {kind.words}, not {value_in_words(value)}"
    return None


def require_fields(record: Mapping[str, Any], fields: Mapping[str, Kind], name: object) -> None:
    """Raises: UserError naming the file and the first wrong field, what it must be and what it is."""
    wrong = misfit(record, fields)
    if wrong is not None:
        raise UserError(f"{name} is damaged: {wrong}")


def value_in_words(value: Any) -> str:
    """A short text for a value of any size, for a message."""
    if isinstance(value, dict):
        return f"an object of {len(value):,} fields"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, str):
        return f"'{shown(value, 60)}'"
    if type(value) is int and abs(value) > LARGEST_NUMBER:
        return f"a number of {value.bit_length():,} bits"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
