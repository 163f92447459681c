"""Numbers in, the words of an error message out: the legal values nearest to an illegal one."""

from collections.abc import Sequence


def divisors(number: int) -> list[int]:
    """All divisors in rising order; [] below 1."""
    return [d for d in range(1, number + 1) if number % d == 0]


def multiples_near(number: int, step: int) -> list[int]:
    """The positive multiples of `step` just below and just above `number`."""
    below = max(number, 0) // step * step
    return [value for value in (below, below + step) if value > 0]


def choice(values: Sequence[object], near: int | None = None, most: int = 8) -> str:
    """'1', '1 or 2', '1, 2 or 3'; of a long list of numbers only the `most` nearest to `near`."""
    kept = list(values)
    if len(kept) > most:
        by_distance = sorted(kept, key=lambda value: abs(int(str(value)) - (near or 0)))
        kept = [value for value in kept if value in by_distance[:most]]
    words = [str(value) for value in kept]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
