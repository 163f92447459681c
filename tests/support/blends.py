"""Laws of blended data sets that other tests break on purpose."""

import math

from megascratch.data.samples.views import BLEND_BLOCK, Blend
from tests.support.corpora import Numbers


def blended(sizes, weights, finite):
    return Blend([Numbers(part, size) for part, size in enumerate(sizes)], weights, finite=finite)


def furthest_behind(weights: list[float], limits: list[int], count: int) -> list[tuple[int, int]]:
    """(data set, its sample) of each sample of a blend, in plain arithmetic: the oracle. The weights are sums of powers
    of two, so that no rounding decides."""
    given, found = [0] * len(weights), []
    for number in range(count):
        behind = [
            weight * max(number, 1) - taken if taken < limit else -math.inf
            for weight, taken, limit in zip(weights, given, limits, strict=True)
        ]
        part = behind.index(max(behind))
        found.append((part, given[part]))
        given[part] += 1
    return found


def a_blend_is_the_greedy_one_beyond_its_first_block() -> None:
    """The law: in order, back, and across; what each set has given by then, too."""
    weights, count = [0.5, 0.125, 0.375], 2 * BLEND_BLOCK + 1000
    for finite, sizes in ((False, [10, 10, 10]), (True, [70_000, 20_000, 60_000])):
        limits = sizes if finite else [count] * 3
        expected = furthest_behind(weights, limits, count)
        blend = blended(sizes, weights, finite)
        asked = [
            *range(0, len(expected), 997),
            BLEND_BLOCK - 1,
            BLEND_BLOCK,
            2 * BLEND_BLOCK - 1,
            2 * BLEND_BLOCK,
        ]
        for numbers in (sorted(asked), sorted(asked, reverse=True), asked[::2] + asked[1::2]):
            assert [blend.origin(number) for number in numbers] == [
                expected[number] for number in numbers
            ]
        for upto in (BLEND_BLOCK, BLEND_BLOCK + 1, 2 * BLEND_BLOCK + 7):
            counts = [sum(part == which for part, _ in expected[:upto]) for which in range(3)]
            assert blend.taken(upto).tolist() == counts
