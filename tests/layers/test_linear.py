"""Linear layers against torch's, in one process and over the tensor axis, with and without a gradient sink."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megascratch.config.layout import Layout
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear, linear
from megascratch.parallel.axis import Axis
from megascratch.parallel.grid import Position
from megascratch.parallel.shard import Part
from tests.support.rank_pool import mesh_of, on_ranks

ALONE = Axis.alone("tp")


class Sink:
    """Keeps what a layer hands over."""

    def __init__(self):
        self.products = []

    def linear(self, weight, x, grad):
        self.products.append(grad.t() @ x)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of the whole are drawn alike on every rank; each takes its pieces."""
    for name, parameter in module.named_parameters():
        shard, tp = module.shards[name], module.tp
        whole = torch.randn(
            shard.shape,
            generator=torch.Generator().manual_seed(seed + len(name)),
            dtype=torch.float64,
        )
        parameter.data = parameter.data.double()
        for piece in shard.pieces(Position(Layout(tp=tp.size), tp.rank)):
            parameter.data[piece.local.slices] = whole[piece.whole.slices]
    return module


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [ColumnParallelLinear, RowParallelLinear])
def test_alone_a_linear_layer_is_torchs(kind, bias):
    layer = filled(kind(5, 7, ALONE, bias=bias, std=1.0))
    x, plain_x = (drawn(3, 2, 5).requires_grad_() for _ in range(2))
    weight = layer.weight.detach().clone().requires_grad_()
    shift = layer.bias.detach().clone().requires_grad_() if bias else None
    y, expected = layer(x), F.linear(plain_x, weight, shift)
    y.sin().sum().backward()
    expected.sin().sum().backward()
    assert torch.allclose(y, expected)
    assert torch.allclose(x.grad, plain_x.grad) and torch.allclose(layer.weight.grad, weight.grad)
    assert not bias or torch.allclose(layer.bias.grad, shift.grad)


@pytest.mark.parametrize("shape", [(3, 2), (60, 4), (240,)])
def test_in_fp32_a_product_of_any_size_is_torchs_and_of_two_dims_may_be_overwritten(shape):
    weight, plain = (nn.Parameter(drawn(256, 192).float()) for _ in range(2))
    x, plain_x = (drawn(*shape, 192, seed=2).float().requires_grad_() for _ in range(2))
    y, expected = linear(x, weight, None, ALONE), F.linear(plain_x, plain)
    if len(shape) == 1:
        y, expected = y.mul_(2.0), expected.mul_(2.0)
    y.sin().sum().backward()
    expected.sin().sum().backward()
    assert torch.allclose(y, expected, atol=1e-4)
    for ours, theirs in ((x.grad, plain_x.grad), (weight.grad, plain.grad)):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2)


def test_a_sink_gets_the_weights_gradient_and_autograd_sees_none():
    weight, bias = nn.Parameter(drawn(7, 5)), nn.Parameter(drawn(7))
    x, grad = drawn(3, 2, 5).requires_grad_(), drawn(3, 2, 7, seed=4)
    linear(x, weight, bias, ALONE).backward(grad)
    expected, weight.grad, weight.grad_sink = weight.grad, None, Sink()
    linear(x, weight, bias, ALONE).backward(grad)
    assert weight.grad is None
    assert torch.allclose(weight.grad_sink.products[0], expected)


def test_an_input_without_gradient_costs_none():
    weight = nn.Parameter(drawn(7, 5))
    linear(drawn(3, 2, 5), weight, None, ALONE).sum().backward()
    assert torch.allclose(weight.grad, drawn(3, 2, 5).sum((0, 1)).expand(7, 5))


def column_then_row(sequence_parallel: bool) -> dict[str, torch.Tensor]:
    """On a rank: column, sine, row; outputs and gradients, where under SP the rank has its own positions."""
    tp = mesh_of(tp=4).tp
    column = filled(
        ColumnParallelLinear(6, 8, tp, bias=True, std=1.0, sequence_parallel=sequence_parallel)
    )
    row = filled(
        RowParallelLinear(8, 6, tp, bias=True, std=1.0, sequence_parallel=sequence_parallel), seed=5
    )
    mine = (lambda t: t.chunk(4)[tp.rank]) if sequence_parallel else (lambda t: t)
    x = mine(drawn(8, 2, 6)).clone().requires_grad_()
    y = row(column(x).sin())
    y.backward(mine(drawn(8, 2, 6, seed=9)))
    return {
        "y": y.detach(),
        "x": x.grad,
        "column": column.weight.grad,
        "column bias": column.bias.grad,
        "row": row.weight.grad,
        "row bias": row.bias.grad,
    }


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_column_and_row_over_four_ranks_are_the_two_plain_layers(sequence_parallel):
    column = filled(ColumnParallelLinear(6, 8, ALONE, bias=True, std=1.0))
    row = filled(RowParallelLinear(8, 6, ALONE, bias=True, std=1.0), seed=5)
    x = drawn(8, 2, 6).requires_grad_()
    y = row(column(x).sin())
    y.backward(drawn(8, 2, 6, seed=9))
    for rank, found in enumerate(on_ranks(4, column_then_row, sequence_parallel)):
        positions = slice(2 * rank, 2 * rank + 2) if sequence_parallel else slice(None)
        own = slice(2 * rank, 2 * rank + 2)
        assert torch.allclose(found["y"], y[positions]) and torch.allclose(
            found["x"], x.grad[positions]
        )
        assert torch.allclose(found["column"], column.weight.grad[own])
        assert torch.allclose(found["column bias"], column.bias.grad[own])
        assert torch.allclose(found["row"], row.weight.grad[:, own])
    partial = [found["row bias"] for found in on_ranks(4, column_then_row, sequence_parallel)]
    total = torch.stack(partial).sum(0) if sequence_parallel else partial[0]
    assert torch.allclose(total, row.bias.grad), (
        "under SP every rank has a part of it (Shard.grad_sum)"
    )


def test_fused_parts_are_cut_each_on_its_own():
    # four rows of q in two heads, one head of k and of v
    parts = (
        Part(4, 2),
        Part(2, 1),
        Part(2, 1),
    )
    layer = ColumnParallelLinear(3, 8, Axis("tp", 2, 1, (0, 1)), bias=False, std=1.0, parts=parts)
    rows = [
        piece.whole.start[0] + i
        for piece in layer.shards["weight"].pieces(Position(Layout(tp=2), 1))
        for i in range(piece.whole.shape[0])
    ]
    assert rows == [2, 3, 4, 5, 6, 7] and layer.weight.shape == (6, 3)
