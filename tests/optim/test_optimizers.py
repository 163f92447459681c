"""Any optimizer of the registry works on every layout: shown by two that are not AdamW, against plain loops."""

from typing import Any

import pytest
import torch

from megascratch.config.registry import BUILT_IN
from megascratch.optim import OPTIMIZERS
from tests.support import synthetic_grads
from tests.support.layout_runs import config_of
from tests.support.rank_pool import on_ranks
from tests.support.toy_optimizers import (
    TOYS,
    PlainAdEMAMix,
    PlainUnitMomentum,
    with_toys,
)
from tests.support.trainers import build_trainer, load_and_train, train_and_save

STEPS = range(5)
LAYOUTS: dict[str, tuple[str, dict[str, int]]] = {
    "one": ("ddp", {}),
    "dp2": ("ddp", {"dp": 2}),
    "tp4 zero1 dp2": ("zero1", {"tp": 4, "dp": 2}),
    "pp2 zero1 dp2": ("zero1", {"pp": 2, "dp": 2}),
    "tp2 pp2": ("ddp", {"tp": 2, "pp": 2}),
}
PLACES: dict[str, dict[str, Any]] = {
    "device": {},
    "host": {"optimizer_cpu_offload": True},
    "half": {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.5},
}


def ranks(layout: dict[str, int]) -> int:
    return torch.Size(layout.values()).numel()


def test_the_setting_knows_the_optimizers_and_no_state_is_called_master():
    assert set(BUILT_IN["optimizer"]) == OPTIMIZERS.keys()
    for optimizer in OPTIMIZERS.values():
        assert "master" not in optimizer.state_names
        assert len(set(optimizer.state_names)) == len(optimizer.state_names)


def trained(flavour, layout, dtype, optimizer, place, engine):
    """The largest error of the weights and of every state after five steps, and the names of the kinds held."""
    kinds = TOYS[optimizer].state_names
    model, stage, shards = synthetic_grads.build(
        flavour, layout, 100, dtype, optimizer=optimizer, **place
    )
    whole, _ = synthetic_grads.serial(STEPS, engine=engine, kinds=kinds)
    synthetic_grads.play(model, stage, shards, STEPS)
    if dtype == torch.bfloat16:
        whole = {name.replace("param.", "optim.master."): value for name, value in whole.items()}
    held = {".".join(name.split(".")[:2]) for name in model.state() if name.startswith("optim.")}
    return synthetic_grads.worst(model, whole), held


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_states_are_those_of_a_plain_loop(layout, place):
    flavour, sizes = LAYOUTS[layout]
    args = (flavour, sizes, torch.float64, "ademamix", PLACES[place], PlainAdEMAMix)
    for error, held in on_ranks(ranks(sizes), with_toys, trained, *args):
        assert error < 1e-12
        assert held == {"optim.fast", "optim.slow", "optim.second"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", ["dp2", "pp2 zero1 dp2"])
def test_in_bf16_they_follow_in_fp32_with_masters(layout, place):
    flavour, sizes = LAYOUTS[layout]
    args = (flavour, sizes, torch.bfloat16, "ademamix", PLACES[place], PlainAdEMAMix)
    for error, held in on_ranks(ranks(sizes), with_toys, trained, *args):
        assert error < 2e-3
        assert held == {"optim.fast", "optim.slow", "optim.second", "optim.master"}


@pytest.mark.parametrize("layout", [{}, {"dp": 2}, {"pp": 2, "dp": 2}], ids=str)
def test_an_optimizer_of_whole_matrices_gets_each_weight_in_its_own_shape(layout):
    args = ("ddp", layout, torch.float64, "unit", {}, PlainUnitMomentum)
    for error, _ in on_ranks(ranks(layout), with_toys, trained, *args):
        assert error < 1e-12


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:
        build_trainer(config_of(optimizer="unit", **settings))
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tensor_model_parallel_size": 2}, "weight is cut over 2 ranks of tp: use 1"),
        (
            {"data_parallel_size": 2, "use_distributed_optimizer": True},
            "the ranges of use-distributed-optimizer begin and end inside them: leave it out",
        ),
    ],
    ids=["tp2", "zero1"],
)
def test_whole_matrices_that_a_layout_cuts_are_refused_with_the_reason(settings, reason):
    for text in on_ranks(2, with_toys, refused, settings):
        assert text.startswith("optimizer unit updates whole matrices, but ")
        assert text.endswith(reason)


SMALL = {"num_layers": 2, "global_batch_size": 4, "ddp_bucket_size": 700, "optimizer": "ademamix"}
WAYS: dict[str, dict[str, Any]] = {
    "zero1 dp2": {"data_parallel_size": 2, "use_distributed_optimizer": True},
    "tp2 host": {"tensor_model_parallel_size": 2, "optimizer_cpu_offload": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}


@pytest.mark.parametrize(("before", "after"), [("zero1 dp2", "tp2 host"), ("tp2 host", "pp2")])
def test_a_run_resumes_on_another_layout_with_all_three_states(before, after, tmp_path):
    undisturbed = on_ranks(
        2, with_toys, train_and_save, config_of(**SMALL, **WAYS[before]), str(tmp_path)
    )
    resumed = on_ranks(
        2, with_toys, load_and_train, config_of(**SMALL, **WAYS[after]), str(tmp_path)
    )
    for (expected, _), (told, _) in zip(undisturbed, resumed, strict=True):
        for numbers, others in zip(expected, told, strict=True):
            assert others == pytest.approx(numbers, rel=1e-9)
