"""A run that left a step out, went back, met an overflow, grew its batch or was resumed ends as the run does that
never saw any of it: weights, moments, counts, loss scale, losses remembered, learning rates and samples, to the bit."""

import pytest

from tests.support.never_seen import CASES, the_run_is_its_plan


@pytest.mark.parametrize("layout", ["one", "zero1", pytest.param("pp2", marks=pytest.mark.deep)])
@pytest.mark.parametrize("name", CASES)
def test_the_run_is_the_one_that_never_saw_it(name, layout):
    the_run_is_its_plan(name, layout)
