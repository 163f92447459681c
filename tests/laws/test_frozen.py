"""A frozen weight of any kind stays as it is on every layout, and the others are trained as in one plain process."""

from functools import cache, partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from megascratch.checkpoint.steps import read_manifest, resolve
from megascratch.config.settings import OptimConfig, ParallelConfig
from megascratch.data_parallel.ddp import DDP
from megascratch.inference.load import load_model
from megascratch.layers import linear
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.shard import Shard
from megascratch.training.health.replicas import ReplicasDiffer, check_replicas
from megascratch.training.state import TrainState
from tests.support.frozen import FROZEN, plain, train_frozen, with_frozen
from tests.support.layout_runs import assert_same, config_of, trace
from tests.support.pairwise_cover import LLAMA
from tests.support.rank_pool import on_ranks
from tests.support.trainers import build_trainer, load_and_train, train_and_save, train_steps

STEPS = 2  # the second step reads the weights that the first one left
UNTIED = {"untie_embeddings_and_output_weights": True}
ZERO1 = {"data_parallel_size": 2, "use_distributed_optimizer": True}
PP2 = {"pipeline_model_parallel_size": 2}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2 zero1": ZERO1,
    "tp2 sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": PP2,
    "pp2 I and W": {**PP2, "pipeline_schedule": "zb_h1"},
    "pp2 a V": {**PP2, "pipeline_schedule": "zb_v"},
    "tp2 pp2 interleaved": {
        **PP2,
        "tensor_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
    },
    "pp2 dp2 zero1 recompute host": {
        **PP2,
        **ZERO1,
        "recompute_granularity": "full",
        "optimizer_cpu_offload": True,
    },
}


@cache
def expected(pattern, **settings):
    return plain(pattern, config_of(**settings), STEPS)


def model_of(kind: str) -> dict[str, Any]:
    """A head can be frozen alone only where it is not tied; the second kind of model has no biases."""
    return UNTIED if kind in ("head", "first half", "last half", "all but a norm") else {}


def the_frozen_stay(kind: str, layout: str, **settings: Any) -> None:
    settings = {**model_of(kind), **settings}
    pattern = FROZEN[kind]
    reference = expected(pattern, **settings)
    found = trace(config_of(**settings, **LAYOUTS[layout]), STEPS, partial(train_frozen, pattern))
    assert_same(reference, found, 1e-9)
    frozen = [name for name in found.params if f"grad.{name[6:]}" not in found.grads[0]]
    assert frozen and all(torch.equal(found.params[n], found.initial[n]) for n in frozen)


@pytest.mark.parametrize("kind", FROZEN)
@pytest.mark.parametrize("layout", ["tp2 sp", "pp2 I and W", "pp2 dp2 zero1 recompute host"])
def test_every_kind_of_weight_can_be_frozen(kind, layout):
    the_frozen_stay(kind, layout)


@pytest.mark.parametrize("kind", ["word embedding", "first half"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_every_layout_though_nothing_before_a_stage_is_trained(kind, layout):
    the_frozen_stay(kind, layout)


@pytest.mark.parametrize("kind", ["norms", "column-parallel", "first half"])
@pytest.mark.parametrize("layout", ["dp2 zero1", "tp2 sp", "pp2"])
def test_in_the_other_kind_of_model(kind, layout):
    the_frozen_stay(kind, layout, **LLAMA)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_frozen_weights_have_neither_masters_nor_state(precision):
    settings = {"fp64": False, precision: True, "initial_loss_scale": 1024.0}
    if precision == "bf16":
        del settings["initial_loss_scale"]
    config = config_of(**settings, **LAYOUTS["pp2 dp2 zero1 recompute host"])
    run = partial(train_frozen, FROZEN["column-parallel"])
    found = trace(config, STEPS, run)
    for name, after in found.params.items():
        frozen = "qkv.weight" in name or "fc1.weight" in name
        assert torch.equal(after, found.initial[name]) is frozen, name
        assert after.dtype == (HALF[precision] if frozen else torch.float32)


def gradients_computed(pattern: str) -> set[str]:
    """On a rank: the weights that get a gradient in a step, told by their slots; no other has a place for one."""
    trainer = with_frozen(pattern, build_trainer, config_of(**LAYOUTS["tp2 sp"]))
    seen: set[str] = set()
    for chunk in trainer.data_parallel.chunks:
        for slot in chunk.slots:
            slot.tell = lambda slot: seen.add(slot.name)
    with patch.object(linear, "_weight_gradient", product_of_a_trained_weight):
        train_steps(trainer, TrainState(), 1)
    for chunk in trainer.chunks:
        for name, parameter in chunk.named_parameters():
            assert parameter.grad is None
            assert hasattr(parameter, "main_grad") is (name in seen)
    return seen


def product_of_a_trained_weight(weight, x, grad):
    assert weight.requires_grad, "a product for a frozen weight"
    return plain_product(weight, x, grad)


plain_product = linear._weight_gradient


def test_no_product_is_made_for_a_frozen_weight():
    for seen in on_ranks(2, gradients_computed, FROZEN["all but a norm"]):
        assert seen == {"layers.2.norm1.weight"}


def corrupted(rank: int) -> str:
    """On a rank: one bit of a frozen weight changes on one of them."""
    pattern = FROZEN["column-parallel"]
    trainer = with_frozen(pattern, build_trainer, config_of(**ZERO1))
    check_replicas(trainer, 1)
    if trainer.mesh.rank == rank:
        weight = trainer.chunks[0].get_parameter("layers.0.mlp.fc1.weight")
        weight.data.view(-1)[:1].view(torch.uint8)[3] ^= 1
    with pytest.raises(ReplicasDiffer) as caught:
        check_replicas(trainer, 1)
    return str(caught.value)


def test_copies_of_frozen_weights_are_compared():
    for said in on_ranks(2, corrupted, 1):
        assert "param.layers.0.mlp.fc1.weight" in said


def one_copy_frozen() -> str:
    with pytest.raises(ValueError) as caught:
        with_frozen("^head", build_trainer, config_of(**PP2))
    return str(caught.value)


def test_one_copy_of_a_tied_weight_cannot_be_frozen_alone():
    for said in on_ranks(2, one_copy_frozen):
        assert said.startswith("embedding.word.weight is frozen on one stage and trained on")


def two_ties(frozen: tuple[str, ...]) -> DDP:
    """One rank with both copies of two tied weights, a and b."""
    module = nn.Module()
    shards = {}
    for name, tied in (("a", "a"), ("copy_of_a", "a"), ("b", "b"), ("copy_of_b", "b")):
        module.register_parameter(name, nn.Parameter(torch.zeros(4), name not in frozen))
        shards[name] = Shard((4,), role="norm", tied=tied)
    return DDP([module], shards, Mesh.alone(), OptimConfig(), ParallelConfig())


def test_each_tied_weight_is_frozen_or_trained_on_its_own():
    assert len(two_ties(()).tied) == 2
    (trained,) = two_ties(("b", "copy_of_b")).tied
    assert [copy.numel() for copy in trained] == [64, 64]  # of a: 4 elements, aligned
    with pytest.raises(ValueError, match=r"^b is frozen on one stage and trained on the other"):
        two_ties(("copy_of_b",))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({**PP2, **ZERO1}, {"tensor_model_parallel_size": 2, "data_parallel_size": 2}),
        ({"tensor_model_parallel_size": 4}, {**PP2, "data_parallel_size": 2}),
    ],
    ids=["pp2 zero1 to tp2 dp2", "tp4 to pp2 dp2"],
)
def test_frozen_weights_are_in_a_checkpoint_once_and_resume_on_any_layout(before, after, tmp_path):
    pattern = FROZEN["word embedding"] + "|" + FROZEN["column-parallel"]
    args = (with_frozen, pattern)
    first = on_ranks(4, *args, train_and_save, config_of(**before), str(tmp_path))
    resumed = on_ranks(4, *args, load_and_train, config_of(**after), str(tmp_path))
    for (told, _), (again, _) in zip(first, resumed, strict=True):
        for numbers, others in zip(told, again, strict=True):
            assert others == pytest.approx(numbers, rel=1e-9)
    step = resolve(tmp_path)
    names = read_manifest(step).tensors.keys()
    alone = plain(pattern, config_of(**before), 2)
    assert {name for name in names if name.startswith("param.")} == alone.params.keys()
    trained = {name.removeprefix("grad.") for name in alone.grads[0]}
    for kind in ("exp_avg", "exp_avg_sq"):
        assert {n for n in names if n.startswith(f"optim.{kind}.")} == {
            f"optim.{kind}.{name}" for name in trained
        }
    whole = config_of()
    model = load_model(step, whole.model, whole.optim, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        if name not in trained:
            initial = alone.initial[f"param.{name}"]
            assert torch.equal(parameter[: len(initial)], initial), name
