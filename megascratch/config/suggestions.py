"""Finds the valid numbers nearest to an invalid one (divisors, multiples) and lists them for an error message."""

import math
from collections.abc import Sequence

MOST_ROOT = 1_000_000  # divisors are searched up to here: a number of 60 bits would take minutes


def divisors(number: int) -> list[int]:
    """All divisors in rising order; [] below 1.

    For a number above MOST_ROOT squared, only the divisors up to MOST_ROOT and number / divisor for each.
    """
    small = [d for d in range(1, min(math.isqrt(max(number, 0)), MOST_ROOT) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def divisors_near(number: int, near: int) -> list[int]:
    """All divisors, those nearest to `near` first."""
    return sorted(divisors(number), key=lambda divisor: abs(divisor - near))


def multiples_near(number: int, step: int) -> list[int]:
    """The positive multiples of `step` just below and just above `number`."""
    below = max(number, 0) // step * step
    return [value for value in (below, below + step) if value > 0]


def choice(values: Sequence[object], near: int | None = None, most: int = 8) -> str:
    """'1', '1 or 2', '1, 2 or 3'; only the `most` numbers nearest to `near` of a long list."""
    kept = list(values)
    if len(kept) > most:
        by_distance = sorted(kept, key=lambda value: abs(int(str(value)) - (near or 0)))
        kept = [value for value in kept if value in by_distance[:most]]
    words = [str(value) for value in kept]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
