"""The sequence pairs are conjugate, and an axis of one rank does nothing."""

import torch

from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import (
    all_gather,
    all_reduce,
    gather_from,
    reduce_scatter,
    reduce_scatter_to,
)
from tests.support.rank_pool import mesh_of, on_ranks


def _gather_then_scatter(world: int) -> tuple[list, list, list]:
    axis = mesh_of(tp=world).tp
    x = (torch.arange(6.0).reshape(2, 3) + 10 * axis.rank).requires_grad_()
    whole = gather_from(x, axis)
    back = reduce_scatter_to(whole * (axis.rank + 1), axis)
    back.sum().backward()
    side = all_gather(x.detach(), axis, dim=1)
    assert torch.equal(reduce_scatter(side, axis, dim=1), x.detach() * world)
    return whole.tolist(), back.tolist(), x.grad.tolist()


def test_sequence_pairs_are_conjugate():
    for rank, (whole, back, grad) in enumerate(on_ranks(2, _gather_then_scatter, 2)):
        assert whole == [[0, 1, 2], [3, 4, 5], [10, 11, 12], [13, 14, 15]]
        assert back == (3 * torch.tensor(whole[2 * rank : 2 * rank + 2])).tolist()
        assert grad == [[3.0] * 3] * 2


def test_an_axis_of_size_one_returns_its_input():
    axis, x = Axis.alone("tp"), torch.ones(2, 2)
    for operation in (all_reduce, all_gather, reduce_scatter, gather_from, reduce_scatter_to):
        assert operation(x, axis) is x
