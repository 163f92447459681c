"""State without a gradient is that of one plain process on every layout, and changes only when a step was taken."""

from functools import cache, partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from megascratch.checkpoint.format.boxes import whole_box
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
from megascratch.checkpoint.steps import read_manifest, resolve
from megascratch.config.layout import View
from megascratch.inference.load import load_model
from megascratch.model.block import FEED_FORWARDS
from megascratch.model.flops import parameters
from megascratch.parallel.axis import Axis
from megascratch.parallel.kept_state import KeepsState, view_of
from megascratch.parallel.shard import Shard
from megascratch.training.health.replicas import ReplicasDiffer, check_replicas
from megascratch.training.state import TrainState
from tests.support.layout_runs import assert_same, config_of, trace, train_on_rank
from tests.support.metered import (
    NOT_TAKEN,
    MeteredMLP,
    kept_state_changes_only_with_a_step,
    plain,
    with_meters,
)
from tests.support.rank_pool import on_ranks
from tests.support.trainers import build_trainer, load_and_train, train_and_save, train_steps

STEPS = 3
PP2 = {"pipeline_model_parallel_size": 2}
TP2 = {"tensor_model_parallel_size": 2}
ZERO1 = {"data_parallel_size": 2, "use_distributed_optimizer": True}
FULL = {"recompute_granularity": "full"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "one recompute": FULL,
    "dp2 zero1": ZERO1,
    "tp2 sp": {**TP2, "sequence_parallel": True},
    "pp2 I and W recompute": {**PP2, **FULL, "pipeline_schedule": "zb_h1"},
    "pp2 a V": {**PP2, "pipeline_schedule": "zb_v"},
    "tp2 interleaved": {**PP2, **TP2, "num_virtual_stages_per_pipeline_rank": 2},
    "pp2 dp2 zero1 recompute host": {**PP2, **ZERO1, **FULL, "optimizer_cpu_offload": True},
}
RUN = partial(with_meters, train_on_rank)


@cache
def expected(steps: int = STEPS):
    return plain(config_of(), steps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_that_of_one_plain_process(layout):
    found = trace(config_of(**LAYOUTS[layout]), STEPS, RUN)
    assert_same(expected(), found, 1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_has_32_bits_where_the_model_has_16(precision):
    settings = {"fp64": False, precision: True} | (
        {"initial_loss_scale": 1024.0} if precision == "fp16" else {}
    )
    found = trace(config_of(**settings, **ZERO1), STEPS, RUN)
    for name, tensor in expected().params.items():
        if name.endswith("square"):
            assert found.params[name].dtype == torch.float32
            torch.testing.assert_close(found.params[name].double(), tensor, rtol=0.1, atol=1e-3)
        elif name.endswith("tokens"):
            assert torch.equal(found.params[name], tensor)


@pytest.mark.parametrize("what", NOT_TAKEN)
def test_it_changes_only_when_a_step_was_taken(what):
    kept_state_changes_only_with_a_step(what, on_ranks)


@pytest.mark.parametrize(
    ("before", "after"),
    [({**PP2, **ZERO1}, {**TP2, "data_parallel_size": 2}), ({**TP2, **PP2}, {**ZERO1, **PP2})],
    ids=["pp2 zero1 to tp2 dp2", "tp2 pp2 to pp2 zero1"],
)
def test_it_resumes_on_any_layout_and_is_loaded_for_inference(before, after, tmp_path):
    saved = on_ranks(4, with_meters, train_and_save, config_of(**before), str(tmp_path))
    resumed = on_ranks(4, with_meters, load_and_train, config_of(**after), str(tmp_path))
    for (told, _), (again, _) in zip(saved, resumed, strict=True):
        for numbers, others in zip(told, again, strict=True):
            assert others == pytest.approx(numbers, rel=1e-9)
    step = resolve(tmp_path)
    names = read_manifest(step).tensors.keys()
    kept = {name for name in names if "square" in name or "tokens" in name}
    assert kept == {name for name in expected().params if name.startswith("buffer.")}
    config = config_of()
    model = with_meters(load_model, step, config.model, config.optim, torch.device("cpu"))
    buffers = dict(model.named_buffers())
    with OpenCheckpoint(step) as contents:
        for name in kept:
            assert torch.equal(
                buffers[name.removeprefix("buffer.")],
                contents.box(name, whole_box(buffers[name[7:]].shape)),
            ), name


def corrupted(name: str) -> str:
    """On a rank: the second one's state changes by itself."""
    trainer = build_trainer(config_of(**TP2, **ZERO1))
    check_replicas(trainer, 1)
    if trainer.mesh.rank == 1:
        trainer.chunks[0].get_buffer(name).add_(1)
    with pytest.raises(ReplicasDiffer) as caught:
        check_replicas(trainer, 1)
    return str(caught.value)


@pytest.mark.parametrize("name", ["layers.0.mlp.square", "layers.1.mlp.tokens"])
def test_its_copies_are_compared(name):
    for said in on_ranks(4, with_meters, corrupted, name):
        assert f"buffer.{name}" in said and "rank 1" in said


def test_it_is_not_counted_as_parameters():
    model = config_of().model
    assert with_meters(parameters, model) == parameters(model)


class Replacing(MeteredMLP):
    def step_taken(self, data):
        self.square = self.square + 1


def replaced() -> str:
    with patch.dict(FEED_FORWARDS, mlp=Replacing):
        trainer = build_trainer(config_of())
    with pytest.raises(RuntimeError) as caught:
        train_steps(trainer, TrainState(), 1)
    return str(caught.value)


def test_a_layer_that_replaces_its_state_is_stopped():
    assert on_ranks(1, replaced) == ["Replacing has replaced a buffer: change it in place"]


class RouterBias(KeepsState):
    """A state in one view of the ranks, and a weight in the other."""

    def __init__(self, view: View, other: View):
        super().__init__()
        self.shards = {
            "weight": Shard((4,), view=other, role="norm"),
            "bias": Shard((4,), view=view, role="router"),
        }
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("bias", torch.zeros(4))

    def begin_step(self) -> None: ...

    def step_taken(self, data: Axis) -> None: ...


def test_a_state_is_summed_over_the_data_ranks_of_its_own_view():
    assert view_of(RouterBias("expert", "dense")) == "expert"
    assert view_of(RouterBias("dense", "expert")) == "dense"


def without_shard() -> str:
    trainer = build_trainer(config_of())
    model = trainer.chunks[0]
    model.final_norm.register_buffer("seen", torch.zeros(3))
    kind = type(trainer.data_parallel)
    with pytest.raises(ValueError) as caught:
        kind([model], trainer.shards, trainer.mesh, trainer.config.optim, trainer.config.parallel)
    return str(caught.value)


def test_a_saved_buffer_without_a_shard_is_refused():
    (said,) = on_ranks(1, without_shard)
    assert said.startswith("final_norm.seen has no shard")
