"""Files as a careless or a hostile hand leaves them: random YAML, records with fields of other types, damaged bytes.
All of it is decided by a seed.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

from megascratch.config.fields import SECTIONS, SETTINGS

SCALARS = [
    "1",
    "0",
    "-1",
    "2.5",
    "1e-3",
    "abc",
    "true",
    "yes",
    "no",
    "~",
    "",
    "null",
    "2001-99-99",
    "2001-01-01",
    "2001-12-14t21:59:43.10-05:00",
    "!!int x",
    "!!float x",
    "!!bool maybe",
    "!!timestamp x",
    "!!binary x",
    "!!null x",
    "!foo x",
    "!!python/object/apply:os.getcwd []",
    "9" * 5000,
    "0x" + "f" * 5000,
    "1_0",
    "_",
    "017",
    "0o17",
    "0b1",
    "1:30",
    "1:30.5",
    ".inf",
    "-.inf",
    ".nan",
    "1e999",
    "-0",
    "+1",
    "=",
    "<<",
    "*none",
    "&a 1",
    "*a",
    "&b",
    '"\\x1b[31m"',
    '"\\0"',
    '"\\uD800"',
    '"\\UFFFFFFFF"',
    '"\\q"',
    "'",
    '"',
    "|\n  a\n  b",
    ">-\n  x",
    "[]",
    "{}",
    "[1, [2, [3]]]",
    "[a, {b: c}]",
    "{a: 1}",
    "? a",
    "- 1",
    "\u202e1",
    "\u2028",
    "\x00",
    "\x1b[2J",
    "\ufeff",
    "\ufffe",
    "é",
    "🙂",
    "%",
    "@a",
    "`",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!pairs []",
    "!!str 3",
    "!!seq x",
    "!!map x",
    "!<tag:yaml.org,2002:int> 3",
    "9223372036854775808",
    "1000000000000",
    "4611686018427387904",
    "[" * 50,
    "{" * 50,
    "!!float 1",
    "1.",
    ".5",
    "0.0e0",
    "[1, 2, 3]",
    "[-1]",
    "[9, 9, 9]",
    "[!!int x]",
    "[2001-99-99]",
    "!!",
    "! x",
    "!! x",
    "&",
    "*",
    "# c",
    "a: b",
    "a #b",
]
LINES = [
    "%YAML 1.1",
    "%YAML 99.99",
    "%TAG ! tag:x,2000:",
    "---",
    "...",
    "--- !!map",
    "<<: *a",
    "<<: {lr: 1}",
    "<<: 1",
    "<<: [*a, *b]",
    "? [a]\n: 1",
    "? {a: b}\n: 2",
    "1: 2",
    "~: 1",
    "true: x",
    "? |\n  lr\n: 1",
    "2001-01-01: 1",
    "base: &a {lr: 1}",
    "x: &b\n  hidden_size: 8",
    "&k lr: 1",
    "*k : 2",
    "\t lr: 1",
    " lr: 1",
    "!!str lr: 2",
    "[a",
    "}",
    "- a",
    "lr : 1",
    "lr:1",
    '"l\\x1br": 1',
    "&a",
    "!!python/name:os.system x: 1",
]


def random_yaml(dice: random.Random) -> str:
    """A settings file that is nearly one."""
    lines, names = list[str](), [*SETTINGS]
    for _ in range(dice.randint(1, 6)):
        kind = dice.random()
        name = dice.choice(names)
        if kind < 0.5:
            lines.append(f"{name}: {_value(dice)}")
        elif kind < 0.7:
            section = dice.choice([*SECTIONS])
            inner = dice.choice([key for key, of in SETTINGS.items() if of.section == section])
            lines.append(f"{section}:\n  {inner}: {_value(dice)}\n  {dice.choice(LINES)}")
        elif kind < 0.9:
            lines.append(dice.choice(LINES))
        else:
            lines.append(
                f"{name[:-1]}{dice.choice(['', 'x', chr(27), chr(0), ' '])}: {_value(dice)}"
            )
    return "\n".join(lines)


def _value(dice: random.Random) -> str:
    if dice.random() < 0.8:
        return dice.choice(SCALARS)
    return f"[{', '.join(dice.choices(SCALARS, k=dice.randint(1, 3)))}]"


DIGITS = "a number of 5,000 digits"
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    float("nan"),
    float("inf"),
    10**30,
    DIGITS,
    1 << 63,
    "",
    "x",
    "\x1b[31m",
    "\0",
    "\ud800",
    "a\nb",
    "9" * 100,
    [],
    [1],
    ["x"],
    [[]],
    [[1, "x"]],
    [None],
    {},
    {"x": 1},
    {"": None},
    {"a": {"b": []}},
    [{}],
    [1] * 50,
    -(1 << 63),
    1e308,
    "../x",
    "/etc/passwd",
    {"bytes": "x"},
]


def changed_records(record: Any, dice: random.Random, count: int) -> Iterator[Any]:
    """The record with one place changed at a time: every field to every value first, as far as `count` goes."""
    places = list(_places(record))
    pairs = [(place, value) for place in places for value in [*VALUES, ...]]
    dice.shuffle(pairs)
    for place, value in pairs[:count]:
        copy = json.loads(json.dumps(record))
        holder = copy
        for step in place[:-1]:
            holder = holder[step]
        if not place:
            copy = None if value is ... else value
        elif value is ...:
            del holder[place[-1]]
        else:
            holder[place[-1]] = value
        yield copy


def _places(record: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    if isinstance(record, dict):
        for key in record:
            yield from _places(record[key], (*above, key))
    if isinstance(record, list):
        for at in range(min(len(record), 2)):
            yield from _places(record[at], (*above, at))


def to_json(record: Any) -> bytes:
    """Also of numbers with thousands of digits, which Python's own writer refuses."""
    return json.dumps(record).replace(f'"{DIGITS}"', "9" * 5000).encode()


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The bytes cut, with bits flipped, with a piece replaced or doubled, or with NULs at the end."""
    at = dice.randrange(len(content) + 1)
    match dice.randrange(7):
        case 0:
            return content[:at]
        case 1 if content:
            at = dice.randrange(len(content))
            return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
        case 2:
            return (
                content[:at]
                + dice.randbytes(dice.randint(1, 9))
                + content[at + dice.randint(0, 9) :]
            )
        case 3:
            return content[:at] + b"\0" * (len(content) - at)
        case 4:
            return content[:at] + content[at // 2 : at] + content[at:]
        case 5:
            return content.decode("latin-1").encode(
                dice.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"])
            )
        case _:
            other = dice.choice(
                [
                    b"[" * 100_000,
                    b'{"a":' * 50_000,
                    b"9" * 5000,
                    b"\xff\xfe",
                    b"\x1b[2J",
                    b"null",
                    b"[]",
                ]
            )
            return content[:at] + other + content[at:]
