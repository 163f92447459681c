"""Laws 2, 3, 6 and 9, and what bf16 may cost: on small layouts, straight from the model's own memory."""

import pytest
import torch

from megascratch.config.layout import Layout
from megascratch.config.settings import Config
from megascratch.model.table import shard_table
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import (
    assemble,
    config_of,
    difference,
    serial,
    synthetic_batch,
    trace,
)
from tests.support.pairwise_cover import GPT, LLAMA, MEGATRON, PARTLY_ROTARY
from tests.support.rank_pool import mesh_for, on_ranks

LAYOUTS = {
    "tp4": {"tensor_model_parallel_size": 4},
    "tp2.pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "tp2.pp2 interleaved": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
    },
    "pp2.dp2.zero1": {
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
}
DROPOUT = {"hidden_dropout": 0.2, "attention_dropout": 0.2}


def build(config: Config) -> Trainer:
    """On a rank."""
    return Trainer(config, mesh_for(Layout.of(config.parallel)))


def initial_weights(config: Config) -> list:
    return [held for held in build(config).held() if held.name.startswith("param.")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "model", [GPT, LLAMA, PARTLY_ROTARY, MEGATRON], ids=["gpt", "llama", "sqrelu", "megatron"]
)
def test_initial_weights_are_bit_equal_on_every_layout(layout, model):
    settings = {"fp64": False, "vocab_size": 61, **model}
    one = assemble([initial_weights(config_of(**settings))])
    many = assemble(on_ranks(4, initial_weights, config_of(**settings, **LAYOUTS[layout])))
    assert one.keys() == many.keys()
    assert all(torch.equal(tensor, many[name]) for name, tensor in one.items())


def test_initial_weights_have_the_spread_that_was_asked_for():
    """std on what reads the residual stream, std / sqrt(2 layers) on what writes to it, 1 on norms, 0 on biases."""
    weights = assemble(
        [initial_weights(config_of(num_layers=4, init_method_std=0.1, hidden_size=128))]
    )
    for name, tensor in weights.items():
        if name.endswith("bias"):
            assert (tensor == 0).all()
        elif "norm" in name:
            assert (tensor == 1).all()
        else:
            expected = 0.1 / 8**0.5 if name.endswith(("proj.weight", "fc2.weight")) else 0.1
            assert tensor.std().item() == pytest.approx(expected, rel=0.05)
            assert abs(tensor.mean().item()) < 5 * expected / tensor.numel() ** 0.5


def test_another_seed_or_name_gives_other_weights():
    a, b = (assemble([initial_weights(config_of(seed=seed))]) for seed in (1, 2))
    word, proj = "param.embedding.word.weight", "param.layers.{}.attention.proj.weight"
    assert not torch.equal(a[word], b[word])
    assert not torch.equal(a[proj.format(0)], a[proj.format(1)])


def test_recomputing_a_micro_batch_draws_the_same_dropout_whatever_came_between():
    config = config_of(**DROPOUT)
    chunk, batch = build(config).chunks[0], synthetic_batch(config, range(2))
    first = chunk(None, batch)
    torch.manual_seed(99)
    torch.rand(7)
    chunk(None, synthetic_batch(config, range(2, 4)))
    assert torch.equal(chunk(None, batch), first)
    chunk.eval()
    assert not torch.equal(chunk(None, batch), first)


def test_each_sample_draws_its_own_dropout_and_keeps_it_in_any_company():
    config = config_of(**DROPOUT)
    chunk = build(config).chunks[0]
    together = chunk(None, synthetic_batch(config, range(3, 6)))
    alone = sum(chunk(None, synthetic_batch(config, range(i, i + 1))) for i in range(3, 6))
    assert together.item() == pytest.approx(alone.item(), rel=1e-12)
    same_text = synthetic_batch(config, range(3, 4))
    renamed = type(same_text)(**{**vars(same_text), "samples": same_text.samples + 1})
    assert chunk(None, renamed).item() != chunk(None, same_text).item()


def padding_rows(config: Config) -> list[tuple[str, int, float]]:
    """(name, rows of padding, largest absolute value in them of weight, gradient and moments) after three steps."""
    trainer = build(config)
    mesh, size, found = trainer.mesh, config.training.micro_batch_size, []
    for step in range(3):
        first = 4 * step + mesh.dp.rank * size
        trainer.train_step([synthetic_batch(config, range(first, first + size))], 1e-2, step + 1)
    for chunk in trainer.chunks:
        for name, shard in shard_table(chunk).items():
            parameter = dict(chunk.named_parameters()).get(name)
            if parameter is None or all(cut.padded is None for cut in shard.cuts):
                continue
            valid = max(0, min(len(parameter), shard.shape[0] - mesh.tp.rank * len(parameter)))
            flats = [
                flat
                for owned in trainer.data_parallel.owned
                for place in owned.bucket.plan.places
                if place.name == name
                for flat in (owned.weights, owned.grads, *owned.state.values())
            ]
            padding = [flat[: parameter.numel()].view(parameter.shape)[valid:] for flat in flats]
            largest = max(
                (part.abs().max().item() for part in padding if part.numel()), default=0.0
            )
            found.append((name, len(parameter) - valid, largest))
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_padding_rows_stay_zero_in_weights_gradients_and_moments(tied):
    """In buckets of one weight each, so that a bucket's start is the weight's."""
    settings = {
        "vocab_size": 33,
        "num_layers": 2,
        "ddp_bucket_size": 1,
        "micro_batch_size": 4,
        "global_batch_size": 4,
        "tensor_model_parallel_size": 4,
        "untie_embeddings_and_output_weights": not tied,
    }
    ranks = on_ranks(4, padding_rows, config_of(**settings))
    names = ["embedding.word.weight"] if tied else ["embedding.word.weight", "head.weight"]
    for rank, padding in zip(ranks, (0, 0, 15, 16), strict=True):
        assert rank == [(name, padding, 0.0) for name in names]


def test_padding_is_in_no_box_of_the_state():
    for held in build(config_of(vocab_size=33)).held():
        if "word" in held.name:
            assert held.whole_shape == (33, 32) and held.box.stop[0] <= 33


@pytest.mark.parametrize("layout", ["tp2.pp2", "pp2.dp2.zero1"])
def test_in_bf16_layouts_differ_by_no_more_than_bf16_itself(layout):
    """Within twice what bf16 differs from fp32 in one process, in losses and in each first gradient's direction."""
    exact = serial(config_of(fp64=False, num_layers=2))
    rounded = serial(config_of(fp64=False, num_layers=2, bf16=True))
    many = trace(config_of(fp64=False, num_layers=2, bf16=True, **LAYOUTS[layout]))
    cost = max(abs(a - b) for a, b in zip(exact.losses, rounded.losses, strict=True))
    assert 0 < cost < 0.05
    assert max(abs(a - b) for a, b in zip(rounded.losses, many.losses, strict=True)) <= 2 * cost
    worst = max(difference(grad, rounded.grads[0][name]) for name, grad in exact.grads[0].items())
    assert (
        max(difference(grad, many.grads[0][name]) for name, grad in rounded.grads[0].items())
        <= 2 * worst
    )
