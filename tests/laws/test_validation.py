"""A validation is over every token of a set that is shorter than was asked for, each of them once, on every layout."""

import pytest

from tests.support.validations import LAYOUTS, a_validation_is_over_the_whole_set


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_validation_is_over_the_whole_set(layout, tmp_path):
    a_validation_is_over_the_whole_set(tmp_path, layout)
