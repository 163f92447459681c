"""Runs of tests measure their machine for a moment only: each would else multiply matrices for 0.4 seconds, to tell its
MFU. And they leave memory to those behind them: the index of mock data is 200 MiB, in a cycle."""

import gc
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from megascratch.training import step_log

MUCH = 1 << 30  # bytes


@pytest.fixture(scope="module", autouse=True)
def _measured_for_a_moment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_log, "matmul_peak", partial(step_log.matmul_peak, seconds=0.01))
        yield


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    if psutil.Process().memory_info().rss > MUCH:
        gc.collect()
