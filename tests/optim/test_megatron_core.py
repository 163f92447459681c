"""Rates of the flags of Megatron-LM beside megatron-core's own scheduler."""

from types import SimpleNamespace

import pytest

from tests.support.megatron_rates import (
    CONSTANT,
    RUNS,
    STEPS,
    ours,
    rates_are_those_of_megatron_core,
)


@pytest.mark.parametrize("name", RUNS)
def test_rates_are_those_of_megatron_core(name):
    rates_are_those_of_megatron_core(name)


@pytest.mark.deep
@pytest.mark.parametrize("name", RUNS)
def test_megatron_core_gives_these_rates(name):
    """At every step, and the rows of the table are its values."""
    scheduler = pytest.importorskip("megatron.core.optimizer_param_scheduler")
    run = RUNS[name]
    rates, sizes = ours(run)
    groups: list[dict[str, float]] = [{}]
    if run.decoupled is not None:
        groups.append({"max_lr": run.decoupled[0], "min_lr": run.decoupled[1]})
    theirs = scheduler.OptimizerParamScheduler(
        SimpleNamespace(param_groups=groups), **{**CONSTANT, **run.core}
    )
    for step in range(STEPS):
        found = (*(group["lr"] for group in groups), groups[0]["weight_decay"])
        assert rates[step] == pytest.approx(found, rel=1e-15, abs=1e-18), step
        assert run.rates.get(step, found) == pytest.approx(found, abs=1e-12), step
        if step not in run.overflows:
            theirs.step(sizes[step])
