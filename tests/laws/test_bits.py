"""What only moves work in time is bit-identical: schedules, cuts of the pipeline, buckets, overlap, ZeRO-1 over two
ranks; in fp32, where another order of additions would show."""

from dataclasses import replace
from typing import Any

import pytest

from tests.support.breaks.gather import run_gathering_late
from tests.support.layout_runs import (
    RunRecord,
    assert_identical,
    assert_same,
    config_of,
    trace,
    traced,
)
from tests.support.pairwise_cover import LLAMA

INTERLEAVED = {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}
PIPELINES: dict[str, dict[str, Any]] = {
    "pp2 gpipe": {"pipeline_model_parallel_size": 2, "pipeline_schedule": "gpipe"},
    "pp2 1f1b": {"pipeline_model_parallel_size": 2},
    "pp2 interleaved": INTERLEAVED,
    "pp2 interleaved, groups of 3": {
        **INTERLEAVED,
        "microbatch_group_size_per_virtual_pipeline_stage": 3,
    },
    "pp2 uneven": {"pipeline_model_parallel_size": 2, "decoder_first_pipeline_num_layers": 1},
    "pp2 one empty stage": {
        "pipeline_model_parallel_size": 2,
        "pipeline_model_parallel_layout": [4, 0],
    },
    "pp4 gpipe": {"pipeline_model_parallel_size": 4, "pipeline_schedule": "gpipe"},
    "pp4 1f1b": {"pipeline_model_parallel_size": 4},
    "pp4 explicit": {
        "pipeline_model_parallel_size": 4,
        "pipeline_model_parallel_layout": [0, 1, 2, 1],
    },
    "pp3 ends alone": {
        "pipeline_model_parallel_size": 3,
        "pipeline_model_parallel_layout": "E|t*4|L",
    },
    "pp3 ends count as layers": {
        "pipeline_model_parallel_size": 3,
        "account_for_embedding_in_pipeline_split": True,
        "account_for_loss_in_pipeline_split": True,
    },
}
DATA: dict[str, dict[str, Any]] = {
    "ddp in many buckets": {"ddp_bucket_size": 700},
    "ddp without overlap": {"overlap_grad_reduce": False},
}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}


def reference(**settings: Any) -> RunRecord:
    return traced(config_of(fp64=False, **settings), steps=3)


@pytest.mark.parametrize("layout", PIPELINES)
def test_schedules_and_cuts_of_the_pipeline_change_no_bit(layout):
    one = reference(untie_embeddings_and_output_weights=True, **DROPOUT)
    config = config_of(
        fp64=False, untie_embeddings_and_output_weights=True, **DROPOUT, **PIPELINES[layout]
    )
    assert_identical(one, trace(config, steps=3))


@pytest.mark.parametrize("layout", ["pp2 gpipe", "pp2 interleaved", "pp4 1f1b", "pp4 explicit"])
def test_cuts_change_no_bit_of_a_tied_model_either_once_its_two_copies_are_apart(layout):
    """In one process the two uses of a tied weight add up micro-batch by micro-batch, apart each adds up on its own
    and the two sums are added: the same sum in another order, so there the one-process run differs by rounding."""
    assert_identical(
        reference(**PIPELINES["pp2 1f1b"]),
        trace(config_of(fp64=False, **PIPELINES[layout]), steps=3),
    )


@pytest.mark.parametrize("flavour", DATA)
def test_buckets_overlap_and_zero1_change_no_bit_over_two_ranks(flavour):
    """A sum of two has one order."""
    two = reference(num_layers=2, data_parallel_size=2)
    assert_identical(
        two,
        trace(config_of(fp64=False, num_layers=2, data_parallel_size=2, **DATA[flavour]), steps=3),
    )


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("bucket", [700, 10**6])
def test_zero1_changes_no_bit_over_two_ranks_but_the_norms_last(bucket, overlap):
    """The norm adds up squares piece by piece, and the pieces are others; so without clipping, which reads the norm."""
    two = reference(num_layers=2, data_parallel_size=2, clip_grad=0.0)
    zero = {"use_distributed_optimizer": True, "ddp_bucket_size": bucket, "clip_grad": 0.0}
    layout = {"num_layers": 2, "data_parallel_size": 2, "overlap_param_gather": overlap}
    other = trace(config_of(fp64=False, **layout, **zero), steps=3)
    assert other.norms == pytest.approx(two.norms, rel=1e-7)
    assert_identical(two, replace(other, norms=two.norms))


GATHERED: dict[str, dict[str, Any]] = {
    "llama, recomputed": {**LLAMA, "recompute_granularity": "full"},
    "pp2 interleaved": {**INTERLEAVED, "num_layers": 4},
    "zb_v": {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zb_v", "num_layers": 4},
    "bf16": {"bf16": True},
}


@pytest.mark.parametrize("kind", GATHERED)
def test_whatever_reads_weights_awaits_their_gather_first(kind):
    """The gathers happen only when they are awaited, so that an old weight would show."""
    layout = {
        "num_layers": 2,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
        "fp64": False,
    }
    config = config_of(**layout | GATHERED[kind])
    at_once = replace(config, parallel=replace(config.parallel, overlap_param_gather=False))
    assert_identical(trace(at_once, steps=3), trace(config, steps=3, run=run_gathering_late))


def test_identity_can_fail():
    """A tied model in one process against its copies apart: equal in value, not in bits."""
    one, apart = reference(adam_eps=1e-3), reference(adam_eps=1e-3, **PIPELINES["pp2 1f1b"])
    assert_same(one, apart, 1e-5)
    with pytest.raises(AssertionError):
        assert_identical(one, apart)
