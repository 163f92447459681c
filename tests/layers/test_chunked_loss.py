"""The loss in pieces against torch's own, on 1, 2 and 4 ranks, and against the loss of all tokens at once."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megascratch.layers.chunked_loss import Logits, chunked_loss
from megascratch.model.chunk import ModelChunk
from megascratch.parallel.axis import Axis
from megascratch.parallel.side_loss import SideLosses
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.rank_pool import mesh_of, on_ranks

N, H, V = 13, 6, 29


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(3)
    x = torch.randn(N, H, generator=stream, dtype=torch.float64)
    weight = torch.randn(V, H, generator=stream, dtype=torch.float64)
    labels = torch.randint(V, (N,), generator=stream)
    mask = (torch.arange(N) % 3 > 0).double()
    return x, weight, labels, mask


def of_torch(scale: float | None, softcap: float | None) -> tuple[torch.Tensor, ...]:
    """(loss, gradient of x, gradient of the matrix) of whole logits, for a loss that counts three times."""
    x, weight, labels, mask = inputs()
    x.requires_grad_()
    weight.requires_grad_()
    logits = x @ weight.t() * (scale or 1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = (F.cross_entropy(logits, labels, reduction="none") * mask).sum()
    (3 * loss).backward()
    return loss.detach(), x.grad, weight.grad


def on_a_rank(tp_size: int, rows: int, expected: float, scale: float, softcap: float) -> tuple:
    tp = mesh_of(tp=tp_size).tp
    x, weight, labels, mask = inputs()
    columns = -(-V // tp_size)
    first = tp.rank * columns
    padded = torch.full((columns * tp_size, H), 50.0, dtype=torch.float64)
    padded[:V] = weight
    part = nn.Parameter(padded[first : first + columns].clone())
    x.requires_grad_()
    valid = max(0, min(columns, V - first))
    how = {"rows": rows, "gather": False, "expected": expected}
    loss = chunked_loss(x, part, labels, mask, Logits(valid, scale, softcap), tp, **how)
    (3 * loss).backward()
    return loss.detach(), x.grad, part.grad


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(("scale", "softcap"), [(None, None), (0.5, None), (None, 2.0), (0.5, 2.0)])
@pytest.mark.parametrize(("rows", "expected"), [(1, 3.0), (5, 3.0), (13, 1.0), (100, 0.25)])
def test_the_loss_in_pieces_is_torchs(tp, scale, softcap, rows, expected):
    """13 tokens in pieces of 5 end with a piece of 3; the gradient may be another one than expected."""
    loss, grad_x, grad_weight = of_torch(scale, softcap)
    ranks = on_ranks(tp, on_a_rank, tp, rows, expected, scale, softcap)
    for found, found_x, _ in ranks:
        assert torch.allclose(found, loss, rtol=1e-13)
        assert torch.allclose(found_x, grad_x, rtol=1e-11, atol=1e-12)
    whole = torch.cat([part for _, _, part in ranks])
    assert torch.allclose(whole[:V], grad_weight, rtol=1e-11, atol=1e-12)
    assert (whole[V:] == 0).all(), "padding has no gradient"


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.13 has it")
def test_the_loss_in_pieces_is_torchs_linear_cross_entropy():
    x, weight, labels, _ = inputs()
    found = chunked_loss(
        x,
        nn.Parameter(weight),
        labels,
        torch.ones(N).double(),
        Logits(V),
        Axis.alone("tp"),
        rows=4,
        gather=False,
        expected=1.0,
    )
    expected = F.linear_cross_entropy(x, weight, labels, reduction="sum")
    assert torch.allclose(found.detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_losses_and_gradients_of_hidden_states_keep_their_bits(tied):
    """With the factor that the trainer knows; only the matrix's gradient is summed in another order."""
    config = config_of(num_layers=2, untie_embeddings_and_output_weights=not tied)
    batch = synthetic_batch(config, range(3))
    batch = replace(batch, side_losses=SideLosses({"lm": 1 / 37}))
    grads = []
    for rows in (None, 7):
        torch.manual_seed(1)
        chunk = ModelChunk(config.model, range(2), True, True, Axis.alone("tp"))
        for weight in chunk.parameters():
            nn.init.normal_(weight, std=0.1)
        chunk.set_loss_chunks(rows)
        loss = chunk(None, batch)
        loss.backward(torch.tensor(1 / 37))
        grads.append({name: weight.grad for name, weight in chunk.named_parameters()})
        grads[-1]["loss"] = loss.detach()
    whole, pieces = grads
    for name, value in whole.items():
        in_another_order = name == "head.weight" or (tied and name == "embedding.word.weight")
        if in_another_order or name == "loss":
            assert torch.allclose(value, pieces[name], rtol=1e-5), name
        else:
            assert torch.equal(value, pieces[name]), name
