"""A token knows its place: dropout, masks, angles and tables read the position that it brings along, never where it is
in a tensor. So the tokens of a sample may come in any order, or a part of them alone, and nothing changes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megascratch.data.samples.batch import Batch
from megascratch.layers.dropout import AttentionDropout, Dropout
from megascratch.layers.kernels.attention import Scores, attend
from megascratch.layers.visible import Visible
from megascratch.model.build import build_chunks
from megascratch.parallel.axis import Axis
from megascratch.parallel.mesh import Mesh
from tests.support.contexts import plain_context
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.pairwise_cover import DOCUMENTS, LLAMA, MEGATRON, PARTLY_ROTARY

S = 16
ORDERS = {
    "zig-zag": [*range(4), *range(12, 16), *range(4, 12)],
    "backwards": [*range(S)][::-1],
    "shuffled": torch.randperm(S, generator=torch.Generator().manual_seed(3)).tolist(),
}
MODELS: dict[str, dict[str, Any]] = {
    "learned": {},
    "documents": DOCUMENTS,
    "llama with documents": {**LLAMA, **DOCUMENTS},
    "interleaved rotary": MEGATRON,
    "partly rotary, recomputed": {**PARTLY_ROTARY, "recompute_granularity": "selective"},
}
DROPOUT = {"hidden_dropout": 0.2, "attention_dropout": 0.3}


def in_another_order(batch: Batch, order: list[int]) -> Batch:
    columns = {
        name: getattr(batch, name)[:, order]
        for name in ("ids", "labels", "loss_mask", "positions", "real")
    }
    return replace(
        batch, **columns, sample_positions=torch.tensor(order), in_order=False, host_positions=None
    )


def loss_and_gradients(config, batch: Batch) -> dict[str, Tensor]:
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 7)
    chunk.set_recompute(config.parallel)
    loss = chunk(None, batch)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in chunk.named_parameters()}}


@pytest.mark.parametrize("dropout", [{}, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("model", MODELS)
def test_the_order_of_tokens_in_a_tensor_says_nothing(model, dropout):
    config = config_of(num_layers=2, **MODELS[model], **dropout)
    batch = synthetic_batch(config, range(3))
    plain = loss_and_gradients(config, batch)
    for order in ORDERS.values():
        other = loss_and_gradients(config, in_another_order(batch, order))
        for name, value in plain.items():
            assert torch.allclose(value, other[name], rtol=1e-10, atol=1e-11), name


def test_a_plain_order_may_be_given_as_any_other():
    """Without the shortcut of a causal kernel."""
    config = config_of(num_layers=2)
    batch = synthetic_batch(config, range(3))
    plain = loss_and_gradients(config, batch)
    spelled_out = loss_and_gradients(config, replace(batch, in_order=False))
    for name, value in plain.items():
        assert torch.allclose(value, spelled_out[name], rtol=1e-10, atol=1e-11), name


def parts_of(order: list[int]) -> list[Tensor]:
    """What two context ranks would hold."""
    return list(torch.tensor(order).chunk(2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tp", [1, 2])
def test_a_part_of_a_sample_has_the_dropout_masks_of_the_whole(order, tp):
    samples = torch.tensor([3, 11])
    stream, weights = torch.ones(S, 2, 6), torch.ones(2, 4, S, S)
    alone = Axis.alone("tp")
    whole = plain_context(S, samples)
    stream = Dropout(0.5, 1, 7, alone)(stream, whole)
    weights = AttentionDropout(0.5, 1, 7, alone)(weights, whole)
    for mine in parts_of(ORDERS[order]):
        context = plain_context(
            len(mine),
            samples,
            sample_positions=mine,
            sample_length=S,
            visible=Visible(mine, mine.flip(0), None, in_order=False),
        )
        for rank in range(tp):
            axis = Axis("tp", tp, rank, tuple(range(tp)))
            of_rank = mine.chunk(tp)[rank]
            dropout = Dropout(0.5, 1, 7, axis, sequence_parallel=tp > 1)
            found = dropout(torch.ones(len(of_rank), 2, 6), context)
            assert torch.equal(found, stream[of_rank])
            heads = range(4 // tp * rank, 4 // tp * (rank + 1))
            dropout = AttentionDropout(0.5, 1, 7, axis)
            found = dropout(torch.ones(2, len(heads), len(mine), len(mine)), context)
            expected = weights[:, list(heads)][:, :, mine][..., mine.flip(0)]
            assert torch.equal(found, expected)


@pytest.mark.parametrize("starts", [None, torch.tensor([[0] * 5 + [5] * 8 + [13] * 3] * 2)])
@pytest.mark.parametrize("order", ORDERS)
def test_queries_of_a_part_see_what_they_see_in_the_whole(order, starts):
    places = torch.arange(S)
    q, k, v = torch.randn(3, 2, 4, S, 8, generator=torch.Generator().manual_seed(1)).double()
    scores = Scores(8**-0.5)
    whole = attend(q, k, v, Visible(places, places, starts, in_order=True), scores)
    keys = torch.tensor(ORDERS[order])
    for mine in parts_of(ORDERS[order]):
        own_starts = None if starts is None else starts[:, mine]
        visible = Visible(mine, keys, own_starts, in_order=False)
        found = attend(q[:, :, mine], k[:, :, keys], v[:, :, keys], visible, scores)
        assert torch.allclose(found, whole[:, :, mine], rtol=1e-10, atol=1e-12)


def test_the_dense_mask_is_made_once():
    places = torch.arange(S)
    visible = Visible(places, places, torch.zeros(2, S, dtype=torch.int64), in_order=True)
    assert not visible.is_causal and visible.dense is visible.dense
    assert visible.dense.shape == (2, 1, S, S)
