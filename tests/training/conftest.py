"""Runs of tests measure their machine for a moment only: each would else multiply matrices for 0.4 seconds, to tell its
MFU."""

from collections.abc import Iterator
from functools import partial

import pytest

from megascratch.training import loop


@pytest.fixture(scope="module", autouse=True)
def _measured_for_a_moment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_peak", partial(loop.matmul_peak, seconds=0.01))
        yield
