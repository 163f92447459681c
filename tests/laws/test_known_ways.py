"""The known ways to break the layout law, each by name: the settings under which a plausible mistake would show."""

from typing import Any

import pytest
import torch

from megascratch.config.layout import Layout
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import (
    assert_identical,
    assert_same,
    config_of,
    gather,
    serial,
    synthetic_batch,
    trace,
    train_on_rank,
)
from tests.support.pairwise_cover import LLAMA, PARTLY_ROTARY
from tests.support.rank_pool import mesh_for, on_ranks

STEPS = 2  # the second step reads what the first one left
TP2, TP4 = {"tensor_model_parallel_size": 2}, {"tensor_model_parallel_size": 4}
PP2, DP2 = {"pipeline_model_parallel_size": 2}, {"data_parallel_size": 2}
SP = {"sequence_parallel": True}
CHUNKS = {**PP2, "num_virtual_stages_per_pipeline_rank": 2}
ZERO1 = {"use_distributed_optimizer": True}
UNTIED = {"untie_embeddings_and_output_weights": True}

WAYS: dict[str, dict[str, Any]] = {
    "mean of means over ranks with unequal valid tokens": {**DP2, "micro_batch_size": 4},
    "mean of means over micro-batches with unequal valid tokens": {"micro_batch_size": 1},
    "norm weights under sequence parallelism": {**TP2, **SP, "num_layers": 2},
    "row-parallel biases under sequence parallelism": {**TP4, **SP, "num_layers": 2},
    "tied embeddings across stages": {**PP2, **TP2, "num_layers": 2},
    "tied embeddings across stages under ZeRO-1": {**PP2, **DP2, **ZERO1, "num_layers": 2},
    "sharded weights in the norm under ZeRO-1": {
        **TP2,
        **DP2,
        **ZERO1,
        "clip_grad": 0.1,
        "num_layers": 2,
    },
    "replicated weights in the norm": {**TP4, **UNTIED, "clip_grad": 0.1, "num_layers": 2},
    "logits that stay cut over the vocabulary": {
        **TP4,
        **UNTIED,
        "vocab_size": 64,
        "num_layers": 2,
    },
    "vocabulary not divisible": {**TP4, "vocab_size": 61, "num_layers": 2},
    "tensor ranks without one token of the vocabulary": {**TP4, "vocab_size": 9, "num_layers": 2},
    "more tensor ranks than key/value heads": {
        **TP4,
        **LLAMA,
        "num_query_groups": 2,
        "num_layers": 2,
    },
    "four tensor ranks share one key/value head, with its bias": {
        **TP4,
        **PARTLY_ROTARY,
        "num_layers": 2,
    },
    "shared key/value heads cut through by ZeRO-1": {
        **TP4,
        **DP2,
        **PARTLY_ROTARY,
        **ZERO1,
        "num_layers": 1,
        "micro_batch_size": 4,
        "ddp_bucket_size": 100,
    },
    "layer offsets when stages change": {"pipeline_model_parallel_size": 4, "hidden_dropout": 0.1},
    "layer offsets when chunks change": {**CHUNKS, "attention_dropout": 0.1},
    "interleaving with micro-batches not a multiple of the stages": {
        **CHUNKS,
        "global_batch_size": 5,
        "microbatch_group_size_per_virtual_pipeline_stage": 3,
    },
    "sync on the last micro-batch with several chunks": {**CHUNKS, **DP2, "ddp_bucket_size": 300},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_known_way_to_break_the_law_is_closed(way):
    config = config_of(**WAYS[way])
    assert_same(serial(config, STEPS), trace(config, STEPS), 1e-9)


def test_valid_tokens_are_unequal_in_these_tests():
    """Else a mean of means would pass."""
    tokens = [
        synthetic_batch(config_of(), range(i, i + 1)).loss_mask.sum().item() for i in range(8)
    ]
    assert (
        len(set(tokens)) > 3
        and sum(tokens[:4]) != sum(tokens[4:])
        and sum(tokens[::2]) != sum(tokens[1::2])
    )


def test_interleaving_takes_microbatches_that_are_no_multiple_of_the_stages():
    """The rest joins the first group: as a group of its own it could not fill the ring."""
    config = config_of(**CHUNKS, global_batch_size=5)
    assert_same(serial(config, STEPS), trace(config, STEPS), 1e-9)


def test_the_norm_counts_every_gathered_gradient_once():
    """Law 7, straight: the norm told by every rank is that of the whole gradients, of which each weight is one."""
    settings = {
        **TP4,
        **PARTLY_ROTARY,
        **SP,
        "pipeline_model_parallel_size": 2,
        "num_layers": 2,
        "num_query_groups": 2,
    }
    run = trace(config_of(**settings), steps=1)
    assert run.norms[0] == pytest.approx(
        sum(grad.square().sum().item() for grad in run.grads[0].values()) ** 0.5
    )


def _train_with_evaluations(config, steps, evaluations):
    """`train_on_rank` with an evaluation before each step."""
    plain, losses = Trainer.train_step, []

    def train_step(self, batches, lr, step, **others):
        losses.append(
            self.evaluate(
                [synthetic_batch(config, range(100 + i, 101 + i)) for i in range(2)]
            ).tolist()
        )
        return plain(self, batches, lr, step, **others)

    try:
        if evaluations:
            Trainer.train_step = train_step
        return train_on_rank(config, steps), losses
    finally:
        Trainer.train_step = plain


@pytest.mark.parametrize(
    "layout",
    [{}, {**TP2, **PP2}, {**CHUNKS, **DP2, **ZERO1}],
    ids=["one", "tp2.pp2", "interleaved.dp2.zero1"],
)
def test_evaluation_moves_neither_weights_nor_random_streams(layout):
    config = config_of(hidden_dropout=0.1, attention_dropout=0.1, **layout)
    world = torch.Size([layout.get(name, 1) for name in (*TP2, *PP2, *DP2)]).numel()
    without, with_evaluations = (
        on_ranks(world, _train_with_evaluations, config, STEPS, on) for on in (False, True)
    )
    assert_identical(
        gather([run for run, _ in without]), gather([run for run, _ in with_evaluations])
    )
    first = with_evaluations[0][1]
    assert len(first) == STEPS and all(told == first for _, told in with_evaluations), (
        "every rank knows the loss (law 9)"
    )


def _steps_in_fp16(config, poisoned_step, poisoned_rank):
    """Per step (skipped, loss scale, parameters moved); one rank's gradient overflows in one step."""
    trainer = Trainer(config, mesh_for(Layout.of(config.parallel)))
    finish, told = trainer.data_parallel.finish, []
    mesh, size = trainer.mesh, config.training.micro_batch_size
    for step in range(4):

        def poisoned(step=step):
            if step == poisoned_step and mesh.rank == poisoned_rank:
                trainer.data_parallel.owned[0].bucket.grads[0] = torch.inf
            finish()

        trainer.data_parallel.finish = poisoned
        trainer.data_parallel.await_weights()
        before = [p.detach().clone() for chunk in trainer.chunks for p in chunk.parameters()]
        batches = [synthetic_batch(config, range(mesh.dp.rank * size, (mesh.dp.rank + 1) * size))]
        result = trainer.train_step(batches, 1e-2, step + 1)
        after = [p.detach() for chunk in trainer.chunks for p in chunk.parameters()]
        moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        told.append((result.skipped, trainer.scale.scale, moved))
    return told


@pytest.mark.parametrize(
    "layout", [TP2, PP2, DP2, {**DP2, **ZERO1}], ids=["tp2", "pp2", "dp2", "dp2.zero1"]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_fp16_overflow_on_one_rank_is_seen_by_all(layout, rank):
    dp = layout.get("data_parallel_size", 1)
    config = config_of(
        **layout,
        fp64=False,
        fp16=True,
        initial_loss_scale=1024.0,
        hysteresis=1,
        num_layers=2,
        micro_batch_size=4,
        global_batch_size=4 * dp,
        overlap_grad_reduce=False,
    )
    for told in on_ranks(2, _steps_in_fp16, config, 1, rank):
        assert told == [
            (False, 1024.0, True),
            (True, 512.0, False),
            (False, 512.0, True),
            (False, 512.0, True),
        ]


def test_a_loss_scale_that_overflows_falls_until_steps_are_taken_on_every_layout_alike():
    settings = {
        "fp64": False,
        "fp16": True,
        "initial_loss_scale": 2.0**26,
        "hysteresis": 1,
        "num_layers": 2,
    }
    one = _steps_in_fp16(config_of(**settings, micro_batch_size=4, global_batch_size=4), -1, -1)
    many = on_ranks(
        2,
        _steps_in_fp16,
        config_of(**settings, **TP2, micro_batch_size=4, global_batch_size=4),
        -1,
        -1,
    )
    assert one[0] == (True, 2.0**25, False)
    assert many == [one, one]
