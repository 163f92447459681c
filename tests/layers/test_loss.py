"""The vocabulary-parallel cross-entropy against torch's, with padding, on 1, 2 and 4 ranks."""

import math

import pytest
import torch
import torch.nn.functional as F

from megascratch.layers.loss import vocab_parallel_cross_entropy
from megascratch.parallel.axis import Axis
from tests.support.rank_pool import mesh_of, on_ranks


def logits_and_labels(n: int, v: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(v)
    logits = 3 * torch.randn(n, v, generator=stream, dtype=torch.float64)
    return logits, torch.randint(v, (n,), generator=stream)


def on_a_rank(v: int, padded: int, tp_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, this rank's gradient); columns of padding hold garbage that must not matter."""
    tp = mesh_of(tp=tp_size).tp
    logits, labels = logits_and_labels(12, v)
    columns = padded // tp_size
    whole = torch.full((12, padded), 50.0, dtype=torch.float64)
    whole[:, :v] = logits
    part = whole[:, tp.rank * columns : (tp.rank + 1) * columns].clone().requires_grad_()
    valid = max(0, min(columns, v - tp.rank * columns))
    losses = vocab_parallel_cross_entropy(part * 1.0, labels, valid, tp)
    (losses * torch.arange(12)).sum().backward()
    return losses.detach(), part.grad


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(("v", "padded"), [(64, 64), (61, 64), (33, 64), (5, 16), (3, 16)])
def test_it_is_torchs_cross_entropy(v, padded, tp):
    """33 of 64 and 3 of 16 columns on four ranks leave ranks without one valid column."""
    logits, labels = logits_and_labels(12, v)
    expected = F.cross_entropy(logits.requires_grad_(), labels, reduction="none")
    (expected * torch.arange(12)).sum().backward()
    ranks = on_ranks(tp, on_a_rank, v, padded, tp)
    gradient = torch.cat([grad for _, grad in ranks], 1)
    assert all(torch.allclose(losses, expected.detach(), rtol=1e-12) for losses, _ in ranks)
    assert torch.allclose(gradient[:, :v], logits.grad, atol=1e-12)
    assert (gradient[:, v:] == 0).all(), "padding has no gradient"


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    losses = vocab_parallel_cross_entropy(logits * 1.0, torch.tensor([1]), 3, Axis.alone("tp"))
    losses.sum().backward()
    assert losses.item() == 1e4 and logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_bf16_logits_give_an_fp32_loss_and_a_bf16_gradient():
    logits = torch.zeros(2, 7, dtype=torch.bfloat16, requires_grad=True)
    losses = vocab_parallel_cross_entropy(logits * 1.0, torch.tensor([0, 6]), 7, Axis.alone("tp"))
    losses.sum().backward()
    assert losses.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16
    assert losses.tolist() == pytest.approx([math.log(7)] * 2)


def test_more_rows_than_one_block_are_all_counted():
    logits = torch.randn(70, 1 << 14)
    labels = torch.arange(70)
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(
        vocab_parallel_cross_entropy(logits.clone(), labels, 1 << 14, Axis.alone("tp")), expected
    )
