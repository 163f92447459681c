"""What a dry run counts is what the papers count."""

from collections import Counter

import pytest
import torch

from tests.support.closed_forms import Case, random_cases, traffic
from tests.support.layout_runs import config_of
from tests.support.traffic import imagined_traffic


def counted(case: Case) -> Counter:
    """(operation, axis) -> bytes, as the program asks for them in a step."""
    found: Counter = Counter()
    config = config_of(**case.settings)
    for what in imagined_traffic(config, case.rank, gloo=False):
        if what.during and what.dtype != torch.float64:  # those are numbers of the whole step
            found[what.operation, what.axis] += what.nbytes
    return found


@pytest.mark.parametrize("case", random_cases(9, 20), ids=str)
def test_traffic_is_that_of_the_papers_byte_for_byte(case):
    assert counted(case) == traffic(case)
