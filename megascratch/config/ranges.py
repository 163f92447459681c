"""The allowed range of a numeric setting on its own, as the declaration of the setting gives it."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """An interval in mathematical notation: a round bracket excludes its end."""

    text: str
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        if value == self.low:
            return self.text[0] == "["
        if value == self.high:
            return self.text[-1] == "]"
        return self.low < value < self.high

    def words(self) -> str:
        """'at least 0', 'above 0', 'in [0, 1)' ..., for an error message."""
        if not math.isinf(self.high):
            return f"in {self.text}"
        number = f"{self.low:g}"
        return f"above {number}" if self.text[0] == "(" else f"at least {number}"


def within(text: str) -> Interval:
    """The interval that is written like '[0, 1)'."""
    low, high = re.findall(r"[\w.]+", text)
    return Interval(text, float(low), float(high))


def at_least(low: float) -> Interval:
    """All finite numbers from `low` on."""
    return within(f"[{low}, inf)")


def above(low: float) -> Interval:
    """All finite numbers greater than `low`."""
    return within(f"({low}, inf)")


def out_of_range(values: Mapping[str, Any], ranges: Mapping[str, Interval]) -> dict[str, str]:
    """Setting -> what is wrong with its value, for each number outside its range; None is never outside."""
    wrong = {}
    for name, interval in ranges.items():
        value = values[name]
        if value is None or value in interval:
            continue
        must_be = interval.words()
        if isinstance(value, float) and not math.isfinite(value):
            must_be = f"a finite number, {must_be}"
        wrong[name] = f"{name.replace('_', '-')} ({value}) must be {must_be}"
    return wrong
