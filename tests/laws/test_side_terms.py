"""A term that arises in the middle of the model has a count of its own, and no layout changes it: the whole objective
is that of one process, and that of plain autograd over the whole batch."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megascratch.commands import main
from megascratch.model.build import build_chunks
from megascratch.optim.loss_scale import LossScale
from megascratch.parallel.mesh import Mesh
from megascratch.verification.run_layout import RunRecord, difference, one_process
from tests.support.layout_runs import (
    assert_same,
    config_of,
    gather,
    synthetic_batch,
    trace,
    world_of,
)
from tests.support.pairwise_cover import DOCUMENTS, LLAMA
from tests.support.pretrain_runs import mock, rows
from tests.support.rank_pool import on_ranks
from tests.support.side_terms import COEFFICIENT, NAME, WithTerm, roughness, train_with_term
from tests.support.trainers import build_trainer

STEPS = 2
TP2 = {"tensor_model_parallel_size": 2}
SP = {**TP2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
ZERO1 = {"data_parallel_size": 2, "use_distributed_optimizer": True}
FULL = {"recompute_granularity": "full"}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "micro-batches of 2": {"micro_batch_size": 2},
    "tp2": TP2,
    "tp2.sp recomputed": {**SP, **FULL, **DROPOUT},
    "pp2": {**PP2, **DOCUMENTS},
    "interleaved": {**PP2, "num_virtual_stages_per_pipeline_rank": 2, **FULL},
    "zb_h1.tp2.sp": {**PP2, **SP, "pipeline_schedule": "zb_h1"},
    "zb_v recomputed": {**PP2, "pipeline_schedule": "zb_v", **FULL, **DROPOUT},
    "dp2.zero1 of a llama": {**ZERO1, **LLAMA, "micro_batch_size": 2},
    "pp2.dp2 selective": {
        **PP2,
        "data_parallel_size": 2,
        "recompute_granularity": "selective",
        **DROPOUT,
    },
}


def alone(config) -> RunRecord:
    return gather([train_with_term(one_process(config), STEPS)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_changes_a_term_in_the_middle(layout):
    config = config_of(**LAYOUTS[layout])
    assert_same(alone(config), trace(config, STEPS, train_with_term), 1e-9)


def by_plain_autograd(config) -> tuple[float, dict[str, torch.Tensor]]:
    """The objective of the first step and its gradients: the whole batch at once, each term a mean."""
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 7)
    batch = synthetic_batch(config, range(config.training.global_batch_size))
    hidden = []
    for number in ("1", "3"):
        chunk.layers[number].register_forward_hook(lambda block, args, x: hidden.append(x))
    loss = chunk(None, batch) / batch.loss_mask.sum()
    for x in hidden:
        loss = loss + COEFFICIENT * roughness(x, batch.real.t()) / batch.real.sum()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in chunk.named_parameters()}


def test_the_objective_and_its_gradients_are_those_of_plain_autograd():
    config = config_of(micro_batch_size=2, **DOCUMENTS)
    found = gather([train_with_term(config, 1)])
    loss, grads = by_plain_autograd(config)
    assert found.losses[0] == pytest.approx(loss, rel=1e-12)
    for name, grad in found.grads[0].items():
        whole = grads[name.removeprefix("grad.")][: len(grad)]  # without the vocabulary's padding
        assert difference(whole, grad) < 1e-9, name


def scaled(cls, optim):
    return cls(1024.0)


def test_the_loss_scale_changes_no_bit_of_a_term():
    config = config_of(micro_batch_size=4)
    plain = gather([train_with_term(config, STEPS)])
    with patch.object(LossScale, "start", classmethod(scaled)):
        assert_same(plain, gather([train_with_term(config, STEPS)]), 1e-15)


def test_in_fp16_a_term_is_that_of_fp64_but_for_rounding():
    run = {
        name: gather([train_with_term(config_of(**kind), 1)])
        for name, kind in {
            "fp64": {},
            "fp16": {"fp64": False, "fp16": True, "initial_loss_scale": 1024.0},
        }.items()
    }
    assert run["fp16"].losses[0] == pytest.approx(run["fp64"].losses[0], rel=1e-3)
    for name, grad in run["fp64"].grads[0].items():
        assert difference(grad, run["fp16"].grads[0][name]) < 2e-2, name


def test_a_step_without_a_learned_token_updates_nothing_although_the_term_counts_some():
    config = config_of()
    with WithTerm():
        trainer = build_trainer(config)
    before = [weight.clone() for weight in trainer.chunks[0].parameters()]
    batch = synthetic_batch(config, range(1))
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    result = trainer.train_step([batch], 1e-2)
    assert result.skipped and result.tokens == 0
    assert result.side_terms[NAME].tokens == batch.real.sum()
    for weight, old in zip(trainer.chunks[0].parameters(), before, strict=True):
        assert torch.equal(weight, old)


def evaluated(config) -> list[list[float]]:
    """On a rank: sum and tokens of each term of two micro-batches of each data rank."""
    with WithTerm():
        trainer = build_trainer(config)
    dp = trainer.mesh.dp
    numbers = range(dp.rank * 4 // dp.size, (dp.rank + 1) * 4 // dp.size)
    return trainer.evaluate([synthetic_batch(config, range(n, n + 1)) for n in numbers]).tolist()


@pytest.mark.parametrize(
    "layout", [{**SP, **PP2, **FULL}, {**ZERO1, **TP2}], ids=["tp2.sp.pp2", "tp2.dp2.zero1"]
)
def test_an_evaluation_has_the_sums_and_the_tokens_of_every_term(layout):
    config = config_of()
    batch = synthetic_batch(config, range(4))
    expected = evaluated(config)
    assert [tokens for _, tokens in expected] == [batch.loss_mask.sum(), batch.real.sum()]
    config = config_of(**layout)
    for found in on_ranks(world_of(config), evaluated, config):
        for term, other in zip(expected, found, strict=True):
            assert other == pytest.approx(term, rel=1e-12)


def test_a_term_has_a_column_in_rows_and_summary(tmp_path, capsys):
    settings = {"train-iters": 2, "eval-interval": 2, "eval-iters": 1}
    with WithTerm():
        assert main(mock(tmp_path, **settings)) == 0
    column = f"{NAME}_loss"
    *steps, evaluation = [row for row in rows(tmp_path) if "event" not in row][:3]
    assert all(row[column] > 0 for row in [*steps, evaluation])
    assert evaluation["split"] == "valid"
    said = capsys.readouterr().out
    for row in [*steps, evaluation]:
        assert f"| {NAME} loss {row[column]:.4f}" in said
    assert f'"{column}": {steps[-1][column]}' in (tmp_path / "summary.json").read_text()


def test_without_a_side_term_no_column_is_added(tmp_path):
    assert main(mock(tmp_path, **{"train-iters": 1})) == 0
    assert [name for name in rows(tmp_path)[0] if name.endswith("_loss")] == []
