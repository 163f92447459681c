"""A shorter step tells what the whole one does, and is taken only if every situation of that one occurs in it."""

from typing import Any

import pytest

from megascratch.dry_run.memory import ALLOCATED_IN
from megascratch.dry_run.run import ImaginedRank, run_rank
from megascratch.dry_run.settings import ImaginedRun
from megascratch.dry_run.shortening import shortened
from megascratch.pipeline.passes import compile_order
from tests.support.layout_runs import config_of
from tests.support.pairwise_cover import FOLDED, LLAMA

TWO_CHUNKS = ("interleaved", "zb_v", "dualpipe_v")


def told(report: ImaginedRank) -> tuple:
    """Everything but the memory."""
    rows = [(row.operation, row.axis, row.dtype, row.count, row.nbytes) for row in report.traffic]
    actions = [row.actions for row in report.traffic]
    return rows, actions, report.flops, report.kernels


def run_of(schedule: str, **settings: Any) -> ImaginedRun:
    chunks = 2 if schedule in TWO_CHUNKS else 1
    config = config_of(
        **{
            **LLAMA,
            "fp64": False,
            "pipeline_model_parallel_size": 2,
            "pipeline_schedule": schedule,
            "num_virtual_stages_per_pipeline_rank": chunks,
            "num_layers": 2 * chunks,
            "global_batch_size": 32,
            "ddp_bucket_size": 10**6,
            "device": "cuda",
            **settings,
        }
    )
    return ImaginedRun(config, None, "cuda", [])


@pytest.mark.parametrize(
    "schedule",
    [
        "1f1b",
        "zb_v",
        *(pytest.param(name, marks=pytest.mark.deep) for name in ("zb_h1", "interleaved", "zb_h2")),
        pytest.param("dualpipe_v", marks=pytest.mark.deep),
    ],
)
def test_a_shorter_step_tells_what_the_whole_one_does(schedule):
    """The peak of memory, every row of traffic, FLOPs and kernels, on both stages. Of a micro-batch that is not run
    the rank of the last stage lacks the loss, one number."""
    run = run_of(schedule, data_parallel_size=2, use_distributed_optimizer=True)
    for rank in (0, 2):
        short, whole = run_rank(run, rank), run_rank(run, rank, whole=True)
        assert short.microbatches_run < whole.microbatches_run == whole.microbatches == 16
        assert told(short) == told(whole)
        has_loss = rank == (0 if schedule in FOLDED else 2)
        losses = (16 - short.microbatches_run) * ALLOCATED_IN["cuda"] * has_loss
        assert short.memory.peak == whole.memory.peak - losses
        assert short.memory.peak_action[0] == whole.memory.peak_action[0]


def test_gloo_holds_every_message_so_all_micro_batches_are_run():
    run = run_of("1f1b", distributed_backend="gloo", global_batch_size=8)
    assert run_rank(run, 1).microbatches_run == 8


def test_gpipe_holds_every_micro_batch_so_all_are_run():
    assert run_rank(run_of("gpipe"), 0).microbatches_run == 32


@pytest.mark.parametrize(
    ("schedule", "stages", "rank", "expected"),
    [
        ("1f1b", 1, 0, 3),  # the first, one between, the last
        ("1f1b", 4, 3, 3),
        ("1f1b", 4, 0, 6),  # four are alive, and the steady state has one more that is neither
        ("gpipe", 4, 0, 64),
    ],
)
def test_a_step_has_as_many_micro_batches_as_its_situations_need(schedule, stages, rank, expected):
    step = shortened(lambda m: compile_order(schedule, stages, m)[rank], 64)
    assert step.microbatches == expected
    assert sum(step.times.values()) == len(compile_order(schedule, stages, 64)[rank])
