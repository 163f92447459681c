"""Blends keep their shares, stages follow one another and repeat nothing early, skipped samples are as if never there.

Sample i of each is a function of i alone.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.config.settings import DataConfig
from megascratch.data.inspect.blend_report import blend_report
from megascratch.data.samples.build import open_splits
from megascratch.data.samples.views import (
    BLEND_BLOCK,
    Blend,
    Curriculum,
    SkipSamples,
    merge_ranges,
    original_index,
)
from tests.support.blends import a_blend_is_the_greedy_one_beyond_its_first_block, blended
from tests.support.corpora import Numbers, counting

WEIGHTS = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=3, max_size=3).filter(any)
PAIRS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda p: [p[0], p[0] + p[1]]), max_size=6
)


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 1), min_size=1, max_size=5),
    numbers=st.lists(st.integers(0, 3000), max_size=9),
)
def test_a_blend_keeps_its_shares_and_any_sample_can_be_read_first(weights, numbers):
    straight = blended([1] * len(weights), weights, False)
    origins = [straight.origin(number) for number in range(3001)]
    other = blended([1] * len(weights), weights, False)
    assert [other.origin(number) for number in numbers] == [origins[number] for number in numbers]
    for part, weight in enumerate(weights):
        mine = [sample for chosen, sample in origins if chosen == part]
        assert mine == list(range(len(mine)))
        assert abs(len(mine) - 3001 * weight / sum(weights)) <= len(weights)


def test_a_blend_goes_on_over_its_blocks():
    blend = blended([1, 1], [1, 2], False)
    far = [
        blend.origin(number)
        for number in (2 * BLEND_BLOCK - 1, 2 * BLEND_BLOCK, 5, 2 * BLEND_BLOCK + 1)
    ]
    assert far[0] == blended([1, 1], [1, 2], False).origin(2 * BLEND_BLOCK - 1)
    counts = [0, 0]
    for number in range(2 * BLEND_BLOCK - 3, 2 * BLEND_BLOCK + 3):
        counts[blend.origin(number)[0]] += 1
    assert counts == [2, 4]


def test_a_blend_is_the_greedy_one_beyond_its_first_block():
    a_blend_is_the_greedy_one_beyond_its_first_block()


def test_a_finite_blend_gives_every_sample_once_then_nothing():
    blend = blended([5, 0, 12], [0.7, 0.2, 0.1], True)
    assert len(blend) == 17
    samples = sorted(blend[number].tolist() for number in range(17))
    assert samples == [*([0, i] for i in range(5)), *([2, i] for i in range(12))]
    assert [blend[number].tolist() for number in (17, 10**7)] == [[], []]


# ---- a curriculum of blends ---------------------------------------------------------------------------------------


def staged(firsts, weights):
    return Curriculum([Numbers(part, 10) for part in range(3)], firsts, weights)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), max_size=3),
    weights=st.lists(WEIGHTS, min_size=4, max_size=4),
    numbers=st.lists(st.integers(0, 1500), max_size=9),
)
def test_each_stage_keeps_its_shares_and_each_corpus_goes_on_where_it_stood(
    lengths, weights, numbers
):
    firsts = np.cumsum([0, *lengths]).tolist()
    weights = weights[: len(firsts)]
    dataset = staged(firsts, weights)
    origins = [dataset.origin(number) for number in range(1501)]
    for part in range(3):
        mine = [sample for chosen, sample in origins if chosen == part]
        assert mine == list(range(len(mine)))
    for first, stop, share in zip(firsts, [*firsts[1:], 1501], weights, strict=True):
        given = np.bincount([part for part, _ in origins[first:stop]], minlength=3)
        assert np.abs(given - np.array(share) / sum(share) * (stop - first)).max() <= 3
        assert not given[np.array(share) == 0].any()
    fresh = staged(firsts, weights)
    assert [fresh.origin(number) for number in numbers] == [origins[number] for number in numbers]


def test_a_stage_longer_than_a_block_is_counted_whole():
    change = BLEND_BLOCK + 7
    dataset = staged([0, change], [[1, 2, 0], [1, 0, 1]])
    before = [dataset.origin(number)[0] for number in range(change)].count(0)
    assert [dataset.origin(change + at) for at in range(2)] == [(0, before), (2, 0)]


def test_a_set_of_weight_0_gives_no_sample():
    for finite in (False, True):
        blend = Blend([Numbers(part, 5) for part in range(3)], [0, 1, 0], finite=finite)
        assert [blend.origin(number)[0] for number in range(5)] == [1] * 5
    assert len(blend) == 5


def test_the_settings_open_stages_of_the_same_corpora(tmp_path):
    """Corpus a holds ids below 1,000, b those from 1,000 on; b is 3/4 of the text."""
    a, b = counting(tmp_path / "a", [10] * 100), counting(tmp_path / "b", [1000] + [10] * 300)
    stages = [f"40 0.25 {a} 0.75 {b}", f"80 {b}", f"90 {a} {b}"]
    data = DataConfig(train_data_path=[a], data_stages=stages, seq_length=9)
    train = open_splits(data, seed=1, vocab_size=5000, train_samples=1).train
    assert [len(train.parts), train.firsts] == [2, [0, 40, 80, 90]]
    assert [train.origin(number)[0] for number in range(40)] == [0] * 40
    assert sum(train.origin(number)[0] for number in range(40, 80)) == 30
    assert [train.origin(number) for number in (80, 89)] == [(1, 30), (1, 39)]
    assert train.weights[3] == [111, 444]
    plain = open_splits(
        DataConfig(train_data_path=[a], seq_length=9), seed=1, vocab_size=5000, train_samples=1
    ).train
    assert all((train[number] == plain[number]).all() for number in range(40))
    assert train[10**5].shape == (10,)


def test_the_report_adds_up(tmp_path):
    a, b = counting(tmp_path / "a", [10] * 100), counting(tmp_path / "b", [10] * 300)
    data = DataConfig(train_data_path=["1", a, "3", b], data_stages=[f"1000 {b}"], seq_length=9)
    train = open_splits(data, seed=1, vocab_size=5000, train_samples=1).train
    rows = blend_report(train, 1500, 9)
    assert [(row.first, row.corpus, row.samples) for row in rows] == [
        (0, a, 250),
        (0, b, 750),
        (1000, b, 500),
    ]
    assert rows[1].epochs[1] == rows[2].epochs[0] == 750 / 333
    assert sum(row.tokens for row in rows) == 1500 * 9
    origins = [train.origin(number)[0] for number in range(1000)]
    worst = max(abs(origins[:n].count(0) - n / 4) for n in range(1, 1001))
    assert rows[0].largest_error == pytest.approx(worst) and worst <= 1
    assert [row.samples for row in blend_report(train, 10, 9)] == [3, 7]
    assert [row.samples for row in blend_report(train.parts[0], 10, 9)] == [10]


# ---- skipped samples ----------------------------------------------------------------------------------------------


@given(PAIRS)
def test_what_is_left_is_every_other_sample_in_order(pairs):
    ranges = merge_ranges(pairs)
    left = [
        number for number in range(100) if not any(first <= number < stop for first, stop in pairs)
    ]
    assert [original_index(number, ranges) for number in range(len(left))] == left
    data = SkipSamples(Numbers(0, 100), ranges)
    assert (
        len(data) == len(left) and [data[number].tolist()[1] for number in range(len(left))] == left
    )


@given(PAIRS, PAIRS)
def test_ranges_are_merged_into_disjoint_rising_ones_whatever_their_order(a, b):
    ranges = merge_ranges(a, b)
    assert ranges == merge_ranges(b, a) == merge_ranges(ranges, ranges)
    assert all(first < stop for first, stop in ranges)
    assert all(one[1] < other[0] for one, other in zip(ranges, ranges[1:], strict=False))


@pytest.mark.parametrize(
    ("ranges", "number", "place"),
    [([], 7, 7), ([[2, 5]], 1, 1), ([[2, 5]], 2, 5), ([[0, 3]], 0, 3)],
)
def test_a_sample_has_this_place(ranges, number, place):
    assert original_index(number, ranges) == place
