"""Optimizer state in host memory is a matter of place: every bit is that of the same run without, checkpoints too."""

from typing import Any

import pytest
import torch

from megascratch.data_parallel.optimizer_shard import first_elements
from tests.support.layout_runs import (
    assert_identical,
    assert_same,
    config_of,
    gather,
    serial,
    trace,
    train_on_rank,
)
from tests.support.rank_pool import on_ranks
from tests.support.trainers import build_trainer, load_and_train, train_and_save

OFFLOAD = {"optimizer_cpu_offload": True}
HALF = {**OFFLOAD, "optimizer_offload_fraction": 0.5}
DP2 = {"data_parallel_size": 2, "num_layers": 2, "global_batch_size": 4, "ddp_bucket_size": 700}
ZERO1 = {**DP2, "use_distributed_optimizer": True}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp64": {},
    "fp32": {"fp64": False},
    "bf16": {"fp64": False, "bf16": True},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", [DP2, ZERO1], ids=["ddp", "zero1"])
@pytest.mark.parametrize("way", [OFFLOAD, HALF], ids=["all", "half"])
def test_offload_changes_no_bit(layout, way, precision):
    settings = {**layout, **PRECISIONS[precision]}
    assert_identical(trace(config_of(**settings), 3), trace(config_of(**settings, **way), 3))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("before", "after"), [(OFFLOAD, {}), ({}, HALF)], ids=["from host", "to host"]
)
def test_a_checkpoint_does_not_show_where_the_state_lived(before, after, precision, tmp_path):
    settings = {**ZERO1, **PRECISIONS[precision]}
    undisturbed = on_ranks(2, train_and_save, config_of(**settings, **before), str(tmp_path))
    resumed = on_ranks(2, load_and_train, config_of(**settings, **after), str(tmp_path))
    assert [told for told, _ in undisturbed] == [told for told, _ in resumed]


def test_host_memory_holds_what_the_step_works_on_and_the_model_keeps_its_weights():
    trainer = build_trainer(config_of(**OFFLOAD))
    for owned in trainer.data_parallel.owned:
        on_device = {
            tensor.untyped_storage().data_ptr()
            for tensor in (owned.bucket.weights, owned.bucket.grads)
        }
        worked_on = (owned.master, owned.step_grads, *owned.state.values())
        assert on_device.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in worked_on)
        assert torch.equal(owned.master, owned.weights)


@pytest.mark.parametrize("way", [{}, OFFLOAD], ids=["device", "host"])
def test_a_stage_without_any_weight_has_nothing_to_update(way):
    settings = {
        "pipeline_model_parallel_size": 4,
        "pipeline_model_parallel_layout": [1, 0, 0, 1],
        "num_layers": 2,
    }
    config = config_of(**settings, **way)
    assert_same(serial(config), trace(config), 1e-9)


@pytest.mark.parametrize(
    ("fraction", "chosen"), [(0.0, 0), (0.1, 1), (0.5, 2), (0.51, 3), (1.0, 4)]
)
def test_a_fraction_takes_the_first_ranges_that_hold_it(fraction, chosen):
    assert first_elements([30, 20, 30, 20], fraction) == [i < chosen for i in range(4)]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("way", [OFFLOAD, HALF], ids=["all", "half"])
def test_on_cuda_the_copies_leave_the_update_as_it_is(way, precision):
    """But for rounding: a CPU and a GPU take other roots, so with an epsilon above the rounding of the gradients."""
    settings = {**PRECISIONS[precision], "device": "cuda", "ddp_bucket_size": 700}
    if precision != "fp64":
        settings["adam_eps"] = 1e-3
    plain, offloaded = (
        gather([train_on_rank(config_of(**settings, **more), 3)]) for more in ({}, way)
    )
    assert_same(plain, offloaded, {"fp64": 1e-9, "fp32": 1e-5, "bf16": 0.02}[precision])
