"""Parses YAML that users write into nodes with their line numbers, safely for any input.

It constructs nothing that a settings file does not need (dates, tags, Python objects), and expands no alias.

    mapping      a list of `Entry`: keys as text, merge keys (`<<: *base`) resolved, repeated keys are an error
    scalar       None, bool, int, float or str as in YAML 1.2; everything else is a `Foreign`
    sequence     a list; a list or a mapping inside it is a `Foreign`
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from megascratch.config.errors import SettingError
from megascratch.config.printable import shown

LARGEST_FILE = 1 << 20  # bytes; all settings with their comments take 2**14
MOST_MERGED = 10_000  # mappings and entries that merge keys add: a few lines could add billions
MOST_DIGITS = 100  # of a whole number: converting a very long one is slow

_TAG = "tag:yaml.org,2002:"
_WHOLE_NUMBER = re.compile(r"([-+]?)(0b[01]+|0o[0-7]+|0x[0-9a-fA-F]+|\d+)")
_BASES = {"0b": 2, "0o": 8, "0x": 16}
_TRUTH = {"true": True, "false": False}


class Foreign(NamedTuple):
    """A value that no setting can have: a date, a mapping, an unknown tag, a malformed number."""

    words: str
    """For a message."""


class Entry(NamedTuple):
    """`key: value` of a mapping."""

    key: str
    value: Node
    line: int
    """Of the key, counted from 1."""


def read_tree(file: str) -> Node | None:
    """The root node of a file; None if the file is empty.

    Raises: SettingError, with the line if it is known, for a file that cannot be read or is not YAML.
    """
    content = _content(file)
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.composer.warn_double_anchors = (
            False  # YAML allows them: an alias refers to the last one
        )
        root: Node | None = yaml.compose(content)
        return root
    except RecursionError:
        raise SettingError(f"config file {file} is nested too deeply") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        more = f"{error.context} " if str(error.problem).startswith("but ") else ""
        raise SettingError(f"{file}:{line}: {shown(f'{more}{error.problem}')}") from None
    except ReaderError as error:
        line = content.count("\n", 0, error.position) + 1
        raise SettingError(
            f"{file}:{line}: character U+{ord(content[error.position]):04X} is not allowed in YAML"
        ) from None
    except (
        Exception
    ) as error:  # the library fails with other errors on some broken escapes and directives
        raise SettingError(f"{file}: not YAML: {type(error).__name__}: {shown(error)}") from error


def entries(node: MappingNode, file: str) -> list[Entry]:
    """The entries of a mapping in order; its own entries come before those that merge keys add, as YAML requires.

    Raises: SettingError for a repeated key, a key that is not text, or a merge key whose value is not a mapping.
    """
    budget = iter(range(MOST_MERGED))
    try:
        return list(_entries(node, file, budget, ()))
    except RecursionError:
        raise SettingError(f"config file {file} is nested too deeply") from None


def is_template(node: Node, root: Node) -> bool:
    """Whether a mapping is merged somewhere (`<<: *base`): such a mapping need not be a section itself."""
    return node.anchor is not None and any(merged is node for merged in _merged_anywhere(root))


def value_of(node: Node) -> Any:
    """A scalar or a list of scalars as a plain Python value."""
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
        values = []
        for item in node.value:
            if isinstance(item, ScalarNode):
                values.append(_scalar(item))
            else:
                values.append(Foreign(kind_of(item)))
        return values
    return Foreign(kind_of(node))


def kind_of(node: Node) -> str:
    """The kind of a node, for a message."""
    return {ScalarNode: "a value", SequenceNode: "a list", MappingNode: "a mapping"}[type(node)]


def _content(file: str) -> str:
    try:
        with Path(file).open("rb") as source:
            content = source.read(LARGEST_FILE + 1)
    except OSError as error:
        raise SettingError(f"config file {file}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise SettingError(f"config file {shown(file)}: {error}") from None
    if len(content) > LARGEST_FILE:
        raise SettingError(
            f"config file {file} has more than {LARGEST_FILE:,} bytes: it is not a settings file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingError(
            f"{file}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 text"
        ) from None


def _entries(
    node: MappingNode, file: str, budget: Iterator[int], above: tuple[Node, ...]
) -> Iterator[Entry]:
    """Entries of a mapping; `above` are the mappings that merge it."""
    if next(budget, None) is None:
        raise SettingError(
            f"{file}:{node.start_mark.line + 1}: merge keys add more than {MOST_MERGED:,} settings"
        )
    own: dict[str, int] = {}
    merges: list[tuple[Node, int]] = []
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == f"{_TAG}merge":
            merges.append((value, line))
            continue
        if not isinstance(key, ScalarNode):
            raise SettingError(f"{file}:{line}: {kind_of(key)} cannot be the name of a setting")
        if key.value in own:
            raise SettingError(
                f'{file}:{line}: found duplicate key "{shown(key.value)}" (first in line {own[key.value]})'
            )
        own[key.value] = line
        yield Entry(key.value, value, line)
    seen = set(own)
    for merged, line in merges:
        for mapping in _merged_by(merged):
            if not isinstance(mapping, MappingNode):
                raise SettingError(
                    f"{file}:{line}: << needs a mapping, like <<: *base, not {kind_of(mapping)}"
                )
            if mapping is node or mapping in above:
                raise SettingError(f"{file}:{line}: << merges a mapping into itself")
            for entry in _entries(mapping, file, budget, (*above, node)):
                next(budget, None)
                if entry.key not in seen:
                    seen.add(entry.key)
                    yield entry


def _merged_by(value: Node) -> list[Node]:
    """The nodes that a merge key with this value refers to: `<<: *base` or `<<: [*base, *other]`."""
    if isinstance(value, SequenceNode):
        nodes: list[Node] = value.value
        return nodes
    return [value]


def _merged_anywhere(root: Node) -> Iterator[Node]:
    """Every node that a merge key in the file refers to; each node is visited once."""
    waiting = [root]
    visited: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited or isinstance(node, ScalarNode):
            continue
        visited.add(id(node))
        if isinstance(node, SequenceNode):
            waiting += node.value
            continue
        for key, value in node.value:
            waiting += [key, value]
            if key.tag == f"{_TAG}merge":
                yield from _merged_by(value)


def _scalar(node: ScalarNode) -> Any:
    text = node.value
    kind = str(node.tag).removeprefix(_TAG)
    if kind == "str":
        return str(text)
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if kind == "int":
        return _whole_number(text)
    if kind == "float":
        return _number(text)
    return Foreign(shown(text, 80))


def _whole_number(text: str) -> Any:
    """1_000 and 0x1f are valid. 017 is not: YAML 1.1 and 1.2 read it as different numbers."""
    match = _WHOLE_NUMBER.fullmatch(text.replace("_", ""))
    if match is None:
        return Foreign(shown(text, 80))
    sign, digits = match.groups()
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return Foreign(shown(text, 80))
    if len(digits) > MOST_DIGITS:
        return Foreign(f"a number of {len(digits):,} digits")
    prefix = digits[:2]
    if prefix in _BASES:
        return int(sign + digits[2:], _BASES[prefix])
    return int(sign + digits)


def _number(text: str) -> Any:
    plain = text.replace("_", "").lower()
    special = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
    if plain in special:
        return special[plain]
    try:
        return float(plain)
    except ValueError:
        return Foreign(shown(text, 80))
