"""The laws of the text that says which layers each stage has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascratch.config.stage_string import (
    StageStringError,
    layers_of_string,
    string_of_layers,
)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("EttL", [2]),
        ("E|tttt|L", [0, 4, 0]),
        ("Et*2|(tt|)*5t|tL", [2, 2, 2, 2, 2, 2, 1, 1]),
        ("Ettt|(tt|)*3,t|L", [3, 2, 2, 2, 1, 0]),
        ("E|*2ttL", [0, 0, 2]),
        ("E ((t|)*2 tt|)*2 L", [1, 1, 2, 1, 1, 2, 0]),
    ],
)
def test_this_text_is_these_layers(text, layers):
    assert layers_of_string(text) == layers


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has 0 x E"),
        ("E|E|tL", r"has 2 x E \(the embedding\): let one E begin the first stage"),
        ("t|EtL", "E .the embedding. at another place: let it begin the first stage"),
        ("Et|Lt", "L .the output layer. at another place: let it end the last stage"),
        ("Et|tmL", r"m \(multi-token prediction\), which is not implemented here: remove it"),
        ("Et|xL", "'x', which has no meaning: use E .the embedding., t"),
        ("E(tt|L", "an open group: add a '.'"),
        ("Et)L", "closes a group that is not open"),
        ("E*t*2L", "without something to repeat"),
        ("Et*0L", "a number of 1 or more"),
        ("Et*L", "a number of 1 or more"),
        ("E((t*1000)*1000)*2L", "more than 1,000,000 layers"),
        ("Et*99999999999999999999L", "more than 1,000,000 layers"),
    ],
)
def test_a_text_without_a_meaning_is_refused(text, complaint):
    with pytest.raises(StageStringError, match=complaint):
        layers_of_string(text)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_layers_survive_a_way_through_text(layers):
    assert layers_of_string(string_of_layers(layers)) == layers
