"""Skipped samples are as if they had never been: what is left is counted without them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascratch.data.samples.skip_samples import SkipSamples, merge_ranges, original_index
from tests.support.corpora import Numbers

PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda p: [p[0], p[0] + p[1]]), max_size=6)


@given(PAIRS)
def test_what_is_left_is_every_other_sample_in_order(pairs):
    ranges = merge_ranges(pairs)
    left = [number for number in range(100) if not any(first <= number < stop for first, stop in pairs)]
    assert [original_index(number, ranges) for number in range(len(left))] == left
    data = SkipSamples(Numbers(0, 100), ranges)
    assert len(data) == len(left) and [data[number].tolist()[1] for number in range(len(left))] == left


@given(PAIRS, PAIRS)
def test_ranges_are_merged_into_disjoint_rising_ones_whatever_their_order(a, b):
    ranges = merge_ranges(a, b)
    assert ranges == merge_ranges(b, a) == merge_ranges(ranges, ranges)
    assert all(first < stop for first, stop in ranges)
    assert all(one[1] < other[0] for one, other in zip(ranges, ranges[1:], strict=False))


@pytest.mark.parametrize(
    ("ranges", "number", "place"), [([], 7, 7), ([[2, 5]], 1, 1), ([[2, 5]], 2, 5), ([[0, 3]], 0, 3)]
)
def test_a_sample_has_this_place(ranges, number, place):
    assert original_index(number, ranges) == place
