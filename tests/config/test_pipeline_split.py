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
    ],
)
def test_the_cut_is_this_list(cut, layers):
    assert layer_cut(*cut) == layers


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
