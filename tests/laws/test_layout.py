"""Law 1: loss, gradient norm, every gathered gradient of every step and every parameter after 5 AdamW steps are those
of the one-process run, whatever the layout; unequal valid tokens and gradient accumulation are in every config."""

from itertools import combinations, islice, product

import pytest

from tests.support import pairwise_cover
from tests.support.layout_runs import assert_same, config_of, difference, serial, trace

COVER, IMPOSSIBLE = pairwise_cover.pairwise_cover()
FP32 = {
    "tp2.sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2.dp2": {
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
    "tp2.pp2.dp2": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "sequence_parallel": True,
        "use_distributed_optimizer": True,
    },
}


def assert_layout_law(choice: pairwise_cover.Choice) -> None:
    config = config_of(**pairwise_cover.settings_of(choice))
    assert_same(serial(config), trace(config), 1e-9)


def test_the_cover_leaves_out_only_pairs_that_no_config_can_hold():
    """One stage can be neither interleaved, nor a V, nor cut unevenly; a V has no first stage of its own size. Every
    other pair of values meets, and so does every layout."""
    of_one_stage = [("schedule", name) for name in ("interleaved", "zb_v", "dualpipe_v")] + [
        ("cut", "uneven")
    ]
    senseless = {(("pp", "1"), other) for other in of_one_stage}
    senseless |= {(("schedule", name), ("cut", "uneven")) for name in ("zb_v", "dualpipe_v")}
    # more than 8 ranks
    senseless |= {((a, "4"), (b, "4")) for a, b in combinations(pairwise_cover.SIZES, 2)}
    assert set(IMPOSSIBLE) == senseless
    met = set().union(*map(pairwise_cover.meetings_of, COVER))
    assert set(pairwise_cover.all_meetings()) - senseless <= met
    pairs = {(a, b) for choice in COVER for a, b in product(choice.items(), repeat=2) if a != b}
    values = [
        (factor, value) for factor, values in pairwise_cover.FACTORS.items() for value in values
    ]
    for a, b in combinations(values, 2):
        assert a[0] == b[0] or (a, b) in pairs or {(a, b), (b, a)} & senseless, (
            f"{a} never meets {b}"
        )


def test_every_choice_of_the_cover_is_needed():
    for left_out in COVER:
        others = set().union(
            *(pairwise_cover.meetings_of(choice) for choice in COVER if choice is not left_out)
        )
        assert not pairwise_cover.meetings_of(left_out) <= others


@pytest.mark.parametrize("choice", COVER, ids=pairwise_cover.name_of)
def test_a_layout_never_changes_the_model(choice):
    assert_layout_law(choice)


@pytest.mark.deep
@pytest.mark.parametrize(
    "choice",
    sorted(islice(pairwise_cover.random_choices(seed=2024), 200), key=pairwise_cover.world_of),
    ids=pairwise_cover.name_of,
)
def test_two_hundred_random_layouts_never_change_the_model(choice):
    assert_layout_law(choice)


@pytest.mark.parametrize("layout", FP32)
def test_a_layout_never_changes_the_model_in_fp32(layout):
    """With an epsilon above the rounding of the gradients. Adam divides a gradient by its own size, so with the usual
    1e-8 a gradient that is zero but for rounding (a key's bias has no effect) still moves its weight by up to lr."""
    config = config_of(fp64=False, num_layers=2, adam_eps=1e-3, **FP32[layout])
    assert_same(serial(config), trace(config), 1e-5)


@pytest.mark.parametrize("layout", FP32)
def test_losses_norms_and_first_gradients_agree_in_fp32_with_adams_usual_epsilon(layout):
    config = config_of(fp64=False, num_layers=2, **FP32[layout])
    one, many = serial(config, 3), trace(config, 3)
    assert many.losses == pytest.approx(one.losses, rel=1e-5)
    assert many.norms == pytest.approx(one.norms, rel=1e-5)
    assert max(difference(grad, many.grads[0][name]) for name, grad in one.grads[0].items()) <= 1e-5
