"""Law 1 for every schedule: the one-process run at 1e-9 in fp64, and the bits of 1F1B in fp32."""

from typing import Any

import pytest

from megascratch.pipeline.csv_schedule import write_table
from megascratch.pipeline.passes import compile_order
from megascratch.pipeline.schedule import Placement
from tests.support.layout_runs import (
    assert_identical,
    assert_same,
    config_of,
    serial,
    trace,
    traced,
)

STEPS = 3
HALVES, FOLDED = ("zb_h1", "zb_h2"), ("zb_v", "dualpipe_v")
UNTIED = {"untie_embeddings_and_output_weights": True}


def settings_of(schedule: str, pp: int, **more: Any) -> dict[str, Any]:
    layers = pp * (2 if schedule in FOLDED else 1)
    return {
        "pipeline_schedule": schedule,
        "pipeline_model_parallel_size": pp,
        "num_layers": max(layers, 4),
        **more,
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("schedule", HALVES + FOLDED)
@pytest.mark.parametrize("pp", [pytest.param(2, marks=pytest.mark.deep), 4])
def test_a_schedule_never_changes_the_model(schedule, pp, tied):
    """On two stages the bits of 1F1B, below, say the same."""
    config = config_of(**settings_of(schedule, pp, untie_embeddings_and_output_weights=not tied))
    assert_same(serial(config, STEPS), trace(config, STEPS), 1e-9)


@pytest.mark.parametrize(
    ("schedule", "layout"),
    [
        ("zb_h1", {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
        ("zb_v", {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
        ("zb_h2", {"data_parallel_size": 2, "use_distributed_optimizer": True}),
        ("zb_v", {"data_parallel_size": 2, "use_distributed_optimizer": True}),
        ("dualpipe_v", {"data_parallel_size": 2, "ddp_bucket_size": 700}),
    ],
    ids=["zb_h1 tp2.sp", "zb_v tp2.sp", "zb_h2 dp2.zero1", "zb_v dp2.zero1", "dualpipe_v dp2"],
)
def test_a_schedule_beside_other_axes_never_changes_the_model(schedule, layout):
    config = config_of(**settings_of(schedule, 2, **layout))
    assert_same(serial(config, STEPS), trace(config, STEPS), 1e-9)


@pytest.mark.parametrize("schedule", HALVES + FOLDED)
def test_a_schedule_only_moves_work_in_time(schedule):
    more = {"fp64": False, "hidden_dropout": 0.1, "attention_dropout": 0.1, **UNTIED}
    plain = traced(config_of(**settings_of("1f1b", 2, **more)), STEPS)
    assert_identical(plain, trace(config_of(**settings_of(schedule, 2, **more)), STEPS))


@pytest.mark.parametrize("schedule", HALVES + FOLDED)
def test_the_bits_of_a_tied_model_are_those_of_two_copies_apart(schedule):
    """In a V both copies lie on the first rank, and their gradients add up there."""
    plain = traced(config_of(**settings_of("1f1b", 2, fp64=False)), STEPS)
    assert_identical(plain, trace(config_of(**settings_of(schedule, 2, fp64=False)), STEPS))


@pytest.mark.parametrize("many", [1, 3, 5])
def test_any_number_of_microbatches_will_do(many):
    for schedule, more in (
        ("interleaved", {"num_virtual_stages_per_pipeline_rank": 2}),
        ("zb_v", {}),
        ("zb_h2", {}),
    ):
        config = config_of(**settings_of(schedule, 2, global_batch_size=many, **more))
        assert_same(serial(config, STEPS), trace(config, STEPS), 1e-9)


def table_file(folder, schedule: str = "zb_v", microbatches: int = 8) -> str:
    placement = Placement(2, 2, folded=schedule in FOLDED)
    path = folder / "own.csv"
    path.write_text(
        write_table(compile_order(schedule, 2, microbatches, 2), placement, compute_only=True)
    )
    return str(path)


@pytest.mark.parametrize("schedule", ["zb_v", "interleaved"])
def test_a_schedule_from_a_file_never_changes_the_model(schedule, tmp_path):
    path = table_file(tmp_path, schedule)
    config = config_of(
        pipeline_schedule_csv=path,
        pipeline_model_parallel_size=2,
        num_virtual_stages_per_pipeline_rank=2,
    )
    assert config.parallel.pipeline_schedule == "csv"
    assert_same(serial(config, STEPS), trace(config, STEPS), 1e-9)
