"""The laws can fail: each of the deliberate breaks of `breaks/` makes the layout law fail on the layout given there,
and each of those in `breaks/alike.py`, which are alike on every layout, the law beside it. The sound code passes."""

from collections.abc import Callable
from functools import cache, partial

import pytest

from megascratch.config.fields import flat
from megascratch.config.settings import Config
from megascratch.verification.layouts import name_of
from megascratch.verification.run_layout import RunRecord, one_process
from tests.support.breaks import BREAKS, run_broken
from tests.support.breaks.alike import ALIKE, in_force, on_broken_ranks
from tests.support.breaks.gaps import with_gaps
from tests.support.breaks.state import resumed
from tests.support.layout_runs import (
    STEPS,
    assert_same,
    config_of,
    gather,
    serial,
    trace,
    train_on_rank,
)
from tests.support.other_layers import with_other_layers
from tests.support.rank_pool import RankFailed, on_ranks
from tests.support.side_terms import train_with_term

IN_EVERY_RUN = (
    "output of a row-parallel layer not summed",
    "loss as a mean of means",
    "one weight gradient of W dropped",
    "learning rate starts anew after a resume",
    "second dropout of a block at the first one's site",
    "Adam's count rises on a step that is skipped",
    "a rollback does not wait for the save under way",
    "reading ahead takes the live position",
    "a blend's block is stale from sample 65,536 on",
    "the last partial round of a validation is dropped",
    "kept state changes on a bad step",
    "each stage asks itself whether a step has tokens",
    "a layer's kind by its number on its stage",
    "a side term divided by the learned tokens",
    "a window by a layer's number on its stage",
    "a cache drops one key too many",
)
LAWS = {
    train_on_rank: "a layout never changes the model",
    resumed: "a resumed run is the undisturbed one",
    train_with_term: "a term in mid-model is that of one process",
    with_gaps: "what one rank lacks, or all of them, changes no layout",
    with_other_layers: "a layout never changes a model of several kinds of layers",
}
SOUND: set[Callable] = set()  # other laws that the sound code was seen to pass


def cases(names) -> list:
    return [
        pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.deep) for name in names
    ]


@pytest.fixture(scope="module")
def table(request):
    """Which law caught which break, on which layout, by what; printed at the end."""
    rows: list[tuple[str, ...]] = []
    yield rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        for row in rows:
            print(
                "\n"
                + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)),
                end="",
            )
        print(
            f"\n{len(rows)} of the deliberate breaks tried were caught; there are {len(BREAKS) + len(ALIKE)}"
        )


@cache
def alone(config: Config, run: Callable) -> RunRecord:
    """The one-process run."""
    return serial(config) if run is train_on_rank else gather([run(one_process(config), STEPS)])


@cache
def sound_code_passes(config: Config, run: Callable) -> bool:
    assert_same(alone(config, run), trace(config, STEPS, run), 1e-9)
    return True


def law_of(name: str, config: Config) -> None:
    assert_same(
        alone(config, BREAKS[name].run), trace(config, STEPS, partial(run_broken, name)), 1e-9
    )


@pytest.mark.parametrize("name", cases(BREAKS))
def test_the_layout_law_notices(name, table):
    config = config_of(**{"num_layers": 2, **BREAKS[name].settings})
    assert sound_code_passes(config, BREAKS[name].run)
    with pytest.raises(AssertionError) as caught:
        law_of(name, config)
    assert not isinstance(caught.value, RankFailed), "a crash proves nothing about the law"
    table.append(
        (name, LAWS[BREAKS[name].run], name_of(flat(config)), str(caught.value).splitlines()[0])
    )


@pytest.mark.parametrize("name", cases(ALIKE))
def test_another_law_notices(name, table, tmp_path):
    for folder in ("sound", "broken"):
        (tmp_path / folder).mkdir()
    law = ALIKE[name].law
    if law not in SOUND:
        law(tmp_path / "sound", on_ranks)
        SOUND.add(law)
    with in_force(name), pytest.raises(AssertionError) as caught:
        law(tmp_path / "broken", on_broken_ranks(name))
    assert not isinstance(caught.value, RankFailed), "a crash proves nothing about the law"
    table.append(
        (name, "a law of its own", "every layout", str(caught.value).splitlines()[0][:120])
    )


def test_no_name_is_given_twice_and_those_of_every_run_are_breaks():
    assert not BREAKS.keys() & ALIKE.keys()
    assert set(IN_EVERY_RUN) <= BREAKS.keys() | ALIKE.keys()


def test_there_is_a_break_of_every_kind():
    """At least forty, and of every collective that layers, gradients and weights use."""
    assert len(BREAKS) >= 40
    replaced = {attribute for broken in BREAKS.values() for _, attribute, _ in broken.replacements}
    assert replaced >= {
        "start_all_reduce",
        "start_reduce_scatter",
        "start_all_gather",
        "all_gather",
        "all_reduce",
        "reduce_from",
        "reduce_scatter_to",
        "_reduce",
        "_share_weights",
        "add_up",
    }
