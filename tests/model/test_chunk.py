"""The model against plain torch formulas written out here, and its counts against its real tensors."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megascratch.config.layout import Layout
from megascratch.data.samples.batch import Batch, collate
from megascratch.model.build import build_chunks
from megascratch.model.chunk import context_of
from megascratch.model.table import shard_table
from megascratch.parallel.mesh import Mesh
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.pairwise_cover import DOCUMENTS, GPT, LLAMA, MEGATRON, PARTLY_ROTARY

MODELS = {
    "gpt": GPT,
    "llama": LLAMA,
    "sqrelu": PARTLY_ROTARY,
    "megatron": MEGATRON,
    "untied": {"untie_embeddings_and_output_weights": True},
}


def model_of(**settings):
    config = config_of(num_layers=2, **settings)
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 7)
    for parameter in chunk.parameters():
        parameter.data += 0.1 * torch.randn(
            parameter.shape,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(parameter.numel()),
        )
    return config, chunk


def gpt2(w: dict[str, torch.Tensor], batch: Batch, heads: int) -> torch.Tensor:
    """GPT-2 with exact GELU, written as one would on a page (Radford et al. 2019); the sum of the loss."""
    s, h = batch.ids.shape[1], w["embedding.word.weight"].shape[1]
    norm = lambda x, name: F.layer_norm(x, (h,), w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    x = w["embedding.word.weight"][batch.ids] + w["embedding.position.weight"][batch.positions]
    for layer in ("layers.0", "layers.1"):
        q, k, v = linear(norm(x, f"{layer}.norm1"), f"{layer}.attention.qkv").chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, h // heads)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(2, 3) / (h // heads) ** 0.5 + torch.full((s, s), -torch.inf).triu(
            1
        )
        x = x + linear(
            (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{layer}.attention.proj"
        )
        x = x + linear(
            F.gelu(linear(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2"
        )
    logits = norm(x, "final_norm") @ w["embedding.word.weight"][:61].T
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    return (losses * batch.loss_mask.flatten()).sum()


def test_a_gpt_is_gpt2_as_written_on_a_page():
    config, chunk = model_of(vocab_size=61)
    batch = synthetic_batch(config, range(3))
    weights = {name: p.detach().clone().requires_grad_() for name, p in chunk.named_parameters()}
    ours, theirs = chunk(None, batch), gpt2(weights, batch, config.model.num_attention_heads)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for name, parameter in chunk.named_parameters():
        assert torch.allclose(parameter.grad, weights[name].grad, atol=1e-11), name


@pytest.mark.parametrize("model", MODELS)
def test_documents_in_one_sample_are_as_if_each_came_alone(model):
    """With positions, attention and loss that stop at boundaries."""
    config, chunk = model_of(**MODELS[model], **DOCUMENTS)
    packed = synthetic_batch(config, range(6))
    total = 0.0
    for row in range(6):
        for start in packed.document_starts[row].unique():
            at = packed.document_starts[row] == start
            ids, labels = packed.ids[row, at].numpy(), packed.labels[row, at].numpy()
            number = int(packed.samples[row])
            alone = collate([np.append(ids, labels[-1])], [number], len(ids), None)
            alone = dataclasses.replace(alone, loss_mask=packed.loss_mask[row : row + 1, at])
            total += chunk(None, alone).item()
    assert len(packed.document_starts.unique()) > 1, "some sample holds several documents"
    assert chunk(None, packed).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_has_a_shard_of_its_shape_and_no_shard_is_left_over(model):
    _, chunk = model_of(**MODELS[model])
    table, parameters = shard_table(chunk), dict(chunk.named_parameters())
    assert table.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert table[name].local_shape(Layout()) == tuple(parameter.shape)


def test_one_layer_without_positions_does_not_know_the_order_of_what_came_before():
    """The first layer's causal mask orders what the second one sees, so one layer it is."""
    config = config_of(num_layers=1, position_embedding_type="none")
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 7)
    batch = synthetic_batch(config, range(1))
    ids = batch.ids
    swapped = torch.cat((ids[:, 1:2], ids[:, :1], ids[:, 2:]), 1)
    last = [chunk.hidden(None, tokens, context_of(batch))[-1] for tokens in (ids, swapped)]
    assert ids[0, 0] != ids[0, 1] and torch.allclose(*last)
