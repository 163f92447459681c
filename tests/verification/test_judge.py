"""A sound layout passes, a broken one fails with words that point at the break, and a crash or a hang is a failure."""

import os
import time
from functools import partial

import pytest

from megascratch.config.settings import Config
from megascratch.verification.judge import judge, tolerances
from megascratch.verification.layouts import Case, random_layouts
from megascratch.verification.measure import train_on_rank
from megascratch.verification.pool import Pool
from megascratch.verification.shrink import for_proof
from tests.laws.breaks import BREAKS, run_broken
from tests.laws.runs import config_of
from tests.pool import session_pool

GUESSES = {
    "gradients not summed over data ranks": "a sum over some axis left out",
    "gradients averaged over data ranks": "a factor of 1 / the data parallel size (2)",
    "loss as a mean of means": "first at step 1: loss",
    "loss counted on each tensor rank": "a factor of the tensor parallel size (2)",
    "gradients of norms not summed under SP": "norm.bias differs; looks like a missing sum over the tensor ranks",
    "two copies of a tied weight not summed": "the two copies of the tied embedding not summed",
    "gradients of shared key/value heads not summed": "gradients of shared key/value heads not summed",
    "layer numbers restart on each stage": "a shifted layer",
    "chunks of a rank are neighbours": "the forward pass",
    "initial weights of each rank from row 0": "initial weights that depend on the layout",
    "weights of other stages left out of the norm": "disagree on loss or norm",
    "sharded weights of other tensor ranks left out of the norm": "a weight left out of the norm",
    "updated weights not gathered under ZeRO-1": "weights not gathered under ZeRO-1",
    "padding enters the softmax": "the forward pass",
}


@pytest.mark.parametrize("name", GUESSES)
def test_a_break_fails_with_words_that_point_at_it(name):
    config = config_of(**{"num_layers": 2, **BREAKS[name].settings})
    verdict = judge(Case(name, config), 2, "fp64", session_pool(), partial(run_broken, name))
    assert verdict.message is not None and GUESSES[name] in verdict.message


def changed(change, config, steps):
    """On a rank: a run of which one number is changed afterwards."""
    run = train_on_rank(config, steps)
    change(run)
    return run


def box(boxes, name, part=0):
    return [held.tensor for held in boxes if held.name == name and held.copy == 0][part]


def other_layer(run):
    box(run.initial, "param.layers.1.mlp.fc1.weight").copy_(box(run.initial, "param.layers.0.mlp.fc1.weight"))


def keys(run):
    box(run.grads[0], "grad.layers.0.attention.qkv.weight", part=1).add_(1)


def last_rows(run):
    box(run.grads[0], "grad.embedding.word.weight")[32:] *= 2


def half_dim(run):
    box(run.grads[1], "grad.layers.0.mlp.fc2.weight")[:, 4:8] += 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_layer, "a shifted layer: this is layers.0.mlp.fc1.weight of the one-process run"),
        (keys, "first at step 1: gradient of layers.0.attention.qkv.weight [dim 0 32:64] is off by"),
        (keys, "a wrong cut of the fused rows (only key rows)"),
        (last_rows, "[dim 0 32:61] is off by"),
        (half_dim, "first at step 2: gradient of layers.0.mlp.fc2.weight [dim 1 4:8] is off by"),
        (half_dim, "the optimizer's step"),
    ],
)
def test_where_it_differs_is_told(change, words):
    verdict = judge(Case("one", config_of(num_layers=2)), 2, "fp64", session_pool(), partial(changed, change))
    assert verdict.message is not None and words in verdict.message


def fall_over(config, steps):
    raise ValueError("on purpose")


def die(config, steps):
    os._exit(1)


def sleep(config, steps):
    time.sleep(60)


@pytest.mark.parametrize(("run", "words"), [(fall_over, "ValueError: on purpose"), (die, "died"), (sleep, "timed out")])
def test_a_rank_that_falls_dies_or_hangs_is_a_failure_and_the_next_layout_runs(run, words):
    pool, case = Pool(timeout=4.0, grace=1.0), Case("tp2", config_of(num_layers=2, tensor_model_parallel_size=2))
    try:
        verdict = judge(case, 1, "fp64", pool, run)
        assert verdict.message is not None and words in verdict.message and verdict.message.startswith("no result")
        if run is not sleep:  # a fresh worker takes longer to start than this time-out
            pool.timeout = 30.0
            assert judge(case, 1, "fp64", pool).passed
    finally:
        pool.close()


def test_random_layouts_pass_in_fp64():
    for case in random_layouts(for_proof(Config(), 3, "fp64"), 4, 10, 11, (), (), False):
        verdict = judge(case, 3, "fp64", session_pool())
        assert verdict.message is None
        assert set(verdict.worst) == {"loss", "grad norm", "gradients", "weights"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_random_layouts_pass_in_lower_precision(precision):
    for case in random_layouts(for_proof(Config(), 3, precision), 4, 3, 12, (), (), False):
        assert judge(case, 3, precision, session_pool()).message is None


def test_bf16_may_differ_by_twice_what_it_costs_one_process():
    (case,) = random_layouts(for_proof(Config(), 2, "bf16"), 1, 1, 0, (), (), False)
    limits = tolerances(case.config, 2, "bf16")
    assert all(1e-5 < limit < 1 for limit in limits.values())
