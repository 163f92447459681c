"""The laws of the pipeline cut: every layer lies on exactly one virtual stage, in model order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.config.pipeline_split import layer_cut


@pytest.mark.parametrize(
    ("cut", "layers"),
    [
        ((8, 1, 1), [8]),
        ((8, 4, 1), [2, 2, 2, 2]),
        ((8, 2, 2), [2, 2, 2, 2]),
        ((8, 4, 1, 1, 1), [1, 3, 3, 1]),
        ((8, 2, 1, 3), [3, 5]),
        ((8, 2, 1, None, 3), [5, 3]),
        ((8, 2, 1, 5, 3), [5, 3]),
        ((16, 2, 2, 4), [2, 6, 2, 6]),
        ((5, 2, 2, None, None, [2, 0, 1, 2]), [2, 0, 1, 2]),
        ((4, 3, 1, None, None, "E|t*4|L"), [0, 4, 0]),
        ((4, 2, 2, None, None, "E|(t|)*2ttL"), [0, 1, 1, 2]),
    ],
)
def test_the_cut_is_this_list(cut, layers):
    assert layer_cut(*cut) == layers


@pytest.mark.parametrize(
    ("cut", "embedding", "loss", "layers"),
    [
        ((7, 4, 1), True, False, [1, 2, 2, 2]),
        ((7, 4, 1), False, True, [2, 2, 2, 1]),
        ((6, 4, 1), True, True, [1, 2, 2, 1]),
        ((14, 2, 2), True, True, [3, 4, 4, 3]),  # only the first chunk of the first stage has less
        ((2, 4, 1), True, True, [0, 1, 1, 0]),
        ((5, 1, 1), True, True, [5]),
    ],
)
def test_what_counts_as_a_layer_makes_its_stage_smaller(cut, embedding, loss, layers):
    assert layer_cut(*cut, embedding_counts=embedding, loss_counts=loss) == layers


@pytest.mark.parametrize(
    ("cut", "complaint"),
    [
        (
            (8, 4, 1),
            r"\(8\) \+ the embedding \(9 in all\) .* \(4 x 1\): use num-layers 7 or 11, .*-size 1, 3 or 9, or",
        ),
        ((7, 4, 1, 1), r"decoder-first-pipeline-num-layers \(1\) sets them by hand: remove one"),
        ((7, 4, 1, None, 2), r"decoder-last-pipeline-num-layers \(2\) sets them"),
        ((7, 2, 1, None, None, "Et*3|t*4L"), r"layout \(Et\*3\|t\*4L\) sets them"),
    ],
)
def test_counted_ends_that_do_not_come_out_even_are_refused(cut, complaint):
    with pytest.raises(UserError, match=complaint):
        layer_cut(*cut, embedding_counts=True)


@pytest.mark.parametrize(
    ("cut", "complaint"),
    [
        (
            (10, 4, 1),
            r"num-layers \(10\) must be divisible by .* \(4 x 1\): use num-layers 8 or 12, .*-size 1, 2, 5 or 10, or",
        ),
        ((10, 4, 2), r"\(4 x 2\): use num-layers 8 or 16, pipeline-model-parallel-size 1 or 5, or"),
        ((3, 2, 2), r"use num-layers 4, or set the layers of each stage"),
        ((8, 1, 1, 3), "need pipeline-model-parallel-size .now 1. of 2 or more"),
        ((8, 4, 1, 0), r"decoder-first-pipeline-num-layers \(0\) must be at least 1"),
        (
            (8, 2, 2, None, 3),
            r"\(3\) .* virtual stages per rank \(2\): use decoder-last-pipeline-num-layers 2 or 4",
        ),
        (
            (8, 2, 1, 5, 4),
            r"\(5\) \+ .* \(4\) must be num-layers \(8\).*: use decoder-last-pipeline-num-layers 3",
        ),
        ((8, 4, 1, 2, 1), r"the 5 layers left .* \(2 x 1\): use num-layers 7 or 9"),
        ((8, 4, 1, 4, 4), r"the 0 layers left .*: use num-layers 10"),
        ((8, 3, 1, 9), r"the -1 layers left .*: use num-layers 11"),
        ((8, 2, 1, None, None, [8]), r"has 1 entries .* \(2 x 1\): give 2 numbers"),
        (
            (8, 2, 1, None, None, [3, 4]),
            r"\(3 4\) sums to 7 but num-layers is 8: use num-layers 7, or change the layout by \+1",
        ),
        ((8, 3, 1, None, None, "Et*4|t*4L"), r"has 2 stages .* \(3 x 1\): give 3 stages"),
        ((8, 2, 1, None, None, "Et*4|t*3L"), r"\(Et\*4\|t\*3L\) sums to 7 .*: use num-layers 7"),
        ((8, 2, 1, None, None, "t*4|t*4L"), r"has 0 x E \(the embedding\): let one E begin"),
        ((8, 2, 1, None, None, [9, -1]), r"\(9 -1\) has a negative entry"),
        ((8, 2, 1, 4, None, [4, 4]), "already sets the layers of the first and last stage"),
    ],
)
def test_a_cut_that_does_not_come_out_even_is_refused(cut, complaint):
    with pytest.raises(UserError, match=complaint):
        layer_cut(*cut)


@given(
    num_layers=st.integers(1, 40),
    pp=st.integers(1, 6),
    chunks=st.integers(1, 3),
    first=st.none() | st.integers(0, 12),
    last=st.none() | st.integers(0, 12),
)
def test_a_cut_loses_no_layer_and_keeps_the_given_ends(num_layers, pp, chunks, first, last):
    try:
        cut = layer_cut(num_layers, pp, chunks, first, last)
    except UserError:
        return
    assert (sum(cut), len(cut), min(cut) > 0) == (num_layers, pp * chunks, True)
    assert first in (None, sum(cut[0::pp])) and last in (None, sum(cut[pp - 1 :: pp]))
