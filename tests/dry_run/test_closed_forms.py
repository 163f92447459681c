"""What a dry run counts is what the papers count."""

import pytest

from tests.support.closed_forms import random_cases, traffic_is_that_of_the_papers


@pytest.mark.parametrize("case", random_cases(9, 20), ids=str)
def test_traffic_is_that_of_the_papers_byte_for_byte(case):
    traffic_is_that_of_the_papers(case)
