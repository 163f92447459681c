"""The layout law can fail: each of the deliberate breaks of `breaks.py` makes it fail on the layout given there, where
the sound code passes."""

from functools import cache, partial

import pytest

from megascratch.config.settings import Config
from tests.laws.breaks import BREAKS, run_broken
from tests.laws.runs import STEPS, assert_same, config_of, serial, trace
from tests.pool import RankFailed

IN_EVERY_RUN = ("output of a row-parallel layer not summed", "loss as a mean of means")
CASES = [pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.deep) for name in BREAKS]


@pytest.fixture(scope="module")
def table(request):
    """What caught which break; printed at the end."""
    rows: dict[str, str] = {}
    yield rows
    width = max(map(len, rows), default=0)
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(f"{name:<{width}}  {what}" for name, what in rows.items()))


@cache
def sound_code_passes(config: Config) -> bool:
    assert_same(serial(config), trace(config), 1e-9)
    return True


def law_of(name: str, config: Config) -> None:
    assert_same(serial(config), trace(config, STEPS, partial(run_broken, name)), 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_layout_law_notices(name, table):
    config = config_of(**{"num_layers": 2, **BREAKS[name].settings})
    assert sound_code_passes(config)
    with pytest.raises(AssertionError) as caught:
        law_of(name, config)
    assert not isinstance(caught.value, RankFailed), "a crash proves nothing about the law"
    table[name] = str(caught.value).splitlines()[0]
