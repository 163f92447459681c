"""A sound layout passes, a broken one fails with words that point at the break, and a crash or a hang is a failure."""

import os
import signal
import time
from functools import partial

import pytest
import torch

from megascratch.config.fields import flat, with_fields
from megascratch.config.settings import Config
from megascratch.verification.layouts import Case, random_layouts
from megascratch.verification.pool import Pool
from megascratch.verification.run_layout import RunRecord, train_on_rank
from megascratch.verification.shrink import for_proof
from megascratch.verification.tolerance import Rounding
from megascratch.verification.verify import verify_case
from tests.support.breaks import BREAKS, run_broken
from tests.support.layout_runs import config_of
from tests.support.rank_pool import session_pool

GUESSES = {
    "gradients not summed over data ranks": "a missing sum over the data ranks",
    "gradients averaged over data ranks": "a factor of 1 / the data parallel size (2)",
    "loss as a mean of means": "first at step 1: loss",
    "loss counted on each tensor rank": "a factor of the tensor parallel size (2)",
    "gradients of norms not summed under SP": "norm.bias differs; looks like a missing sum over the tensor ranks",
    "two copies of a tied weight not summed": "the two copies of the tied embedding not summed",
    "gradients of shared key/value heads not summed": "gradients of shared key/value heads not summed",
    "layer numbers restart on each stage": "a shifted layer",
    "chunks of a rank are neighbours": "the forward pass",
    "initial weights of each rank from row 0": "initial weights that depend on the layout",
    "weights of other stages left out of the norm": "a weight left out of the norm",
    "sharded weights of other tensor ranks left out of the norm": "a weight left out of the norm",
    "updated weights not gathered under ZeRO-1": "weights not gathered under ZeRO-1",
    "padding enters the softmax": "the forward pass",
}


@pytest.mark.parametrize("name", GUESSES)
def test_a_break_fails_with_words_that_point_at_it(name):
    config = config_of(**{"num_layers": 2, **BREAKS[name].settings})
    verdict = verify_case(Case(name, config), 2, "fp64", session_pool(), partial(run_broken, name))
    assert verdict.message is not None and GUESSES[name] in verdict.message


def changed(change, config, steps):
    """On a rank: a run of which one number is changed afterwards."""
    run = train_on_rank(config, steps)
    change(run)
    return run


def box(boxes, name, part=0):
    return [held.tensor for held in boxes if held.name == name and held.copy == 0][part]


def other_layer(run):
    box(run.initial, "param.layers.1.mlp.fc1.weight").copy_(
        box(run.initial, "param.layers.0.mlp.fc1.weight")
    )


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
        (
            keys,
            "first at step 1: gradient of layers.0.attention.qkv.weight [dim 0 32:64] is off by",
        ),
        (keys, "a wrong cut of the fused rows (only key rows)"),
        (last_rows, "[dim 0 32:61] is off by"),
        (half_dim, "first at step 2: gradient of layers.0.mlp.fc2.weight [dim 1 4:8] is off by"),
        (half_dim, "the optimizer's step"),
    ],
)
def test_where_it_differs_is_told(change, words):
    verdict = verify_case(
        Case("one", config_of(num_layers=2)), 2, "fp64", session_pool(), partial(changed, change)
    )
    assert verdict.message is not None and words in verdict.message


def fall_over(config, steps):
    raise ValueError("on purpose")


def die(config, steps):
    os._exit(1)


def sleep(config, steps):
    time.sleep(600)


@pytest.mark.parametrize(
    ("run", "words"), [(fall_over, "ValueError: on purpose"), (die, "died"), (sleep, "timed out")]
)
def test_a_rank_that_falls_dies_or_hangs_is_a_failure_and_the_next_layout_runs(run, words):
    pool, case = (
        Pool(300.0, grace=1.0),
        Case("tp2", config_of(num_layers=2, tensor_model_parallel_size=2)),
    )
    try:
        pool.run(2, os.getpid)  # workers take a while to start, on a busy machine a long one
        pool.timeout = 2.0 if run is sleep else 300.0
        verdict = verify_case(case, 1, "fp64", pool, run)
        assert (
            verdict.message is not None
            and words in verdict.message
            and verdict.message.startswith("no result")
        )
        if run is not sleep:
            assert verify_case(case, 1, "fp64", pool).passed
    finally:
        pool.close()


def test_a_rank_that_was_killed_between_two_runs_is_replaced():
    pool = Pool(timeout=300)
    try:
        first = pool.run(2, os.getpid)
        os.kill(first[1], signal.SIGKILL)
        pool.workers[1][0].join(10)
        assert len(set(pool.run(2, os.getpid))) == 2
    finally:
        pool.close()


def test_random_layouts_pass_in_fp64():
    for case in random_layouts(for_proof(flat(Config()), 3, "fp64"), 4, 10, 11, (), (), False):
        verdict = verify_case(case, 3, "fp64", session_pool())
        assert verdict.message is None
        assert set(verdict.worst) == {"loss", "grad norm", "gradients", "weights"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_random_layouts_pass_in_lower_precision(precision):
    for case in random_layouts(for_proof(flat(Config()), 3, precision), 4, 3, 12, (), (), False):
        assert verify_case(case, 3, precision, session_pool()).message is None


UNDER_BF16 = (
    "gradients of norms not summed under SP",
    "gradients averaged over data ranks",
    "two copies of a tied weight not summed",
    "gradients of shared key/value heads not summed",
    "layer numbers restart on each stage",
    "updated weights not gathered under ZeRO-1",
    "loss as a mean of means",
)


@pytest.mark.parametrize(
    "name", [UNDER_BF16[0], *(pytest.param(n, marks=pytest.mark.deep) for n in UNDER_BF16[1:])]
)
def test_a_break_fails_under_bf16_too(name):
    config = config_of(**{"num_layers": 2, **BREAKS[name].settings})
    config = with_fields(config, for_proof(flat(config), 3, "bf16"))
    assert verify_case(Case(name, config), 3, "bf16", session_pool()).passed
    verdict = verify_case(Case(name, config), 3, "bf16", session_pool(), partial(run_broken, name))
    assert verdict.message is not None and not verdict.message.startswith("no result")


def run_of(number: float, *elements: float) -> RunRecord:
    """One step: its loss, and a gradient of one tensor beside one of 100 elements."""
    a = torch.tensor(elements)
    grads = {"grad.a": a, "grad.b": torch.full((100,), number)}
    return RunRecord([number], [number], [grads], {"param.a": a}, {"param.a": torch.zeros_like(a)})


def test_the_law_of_bf16_is_twice_what_rounding_costs_one_process():
    """Lengths of vectors: 5 of the first tensor, and of the second 10, or its share of the whole if that is more."""
    yardstick = Rounding(run_of(1.0, 0.0, 0.0), [run_of(2.0, 3.0, 4.0)])
    a, b = torch.zeros(2), torch.tensor([0.0, 10.0])
    assert yardstick.limit == 2.0
    assert yardstick.far("gradients", 1, "grad.a", a, b) == pytest.approx(2.0)
    share = (125 * 100 / 102) ** 0.5
    assert yardstick.far(
        "gradients", 1, "grad.b", torch.zeros(100), torch.ones(100)
    ) == pytest.approx(10 / share)
    assert yardstick.far("loss", 1, "loss", torch.tensor(1.0), torch.tensor(4.0)) == pytest.approx(
        3 / 3
    )
    assert (
        yardstick.far("gradients", 1, "grad.a", a, torch.zeros(3))
        == yardstick.far("gradients", 1, "grad.a", a, torch.full((2,), torch.nan))
        == float("inf")
    )


def test_a_tensor_is_as_noisy_as_the_rest_where_its_own_rounding_cancelled():
    """Its share of the whole: 10 x sqrt(4 / 104)."""
    yardstick = Rounding(run_of(1.0, 0.0, 0.0, 0.0, 0.0), [run_of(2.0, 0.0, 0.0, 0.0, 0.0)])
    share = 10 * (4 / 104) ** 0.5
    found = yardstick.far("gradients", 1, "grad.a", torch.zeros(4), torch.tensor([share, 0, 0, 0]))
    assert found == pytest.approx(1.0)


def test_initial_weights_are_the_same_bits_in_bf16():
    yardstick = Rounding(run_of(1.0, 0.0), [run_of(2.0, 1.0)])
    assert yardstick.far("weights", 0, "param.a", torch.ones(1), torch.ones(1)) == 0.0
    assert yardstick.far(
        "weights", 0, "param.a", torch.ones(1), torch.full((1,), 1.0078125)
    ) == float("inf")
