"""One process's part of the norm; over ranks it is tested with data parallelism."""

import pytest
import torch

from megascratch.config.layout import Layout
from megascratch.optim.grad_norm import GlobalNorm, clip_factor
from megascratch.parallel.axis import Axis
from megascratch.parallel.grid import Position
from megascratch.parallel.shard import Shard


def norm_of(counted):
    """Of one process."""
    shards = {name: Shard((1,)) for name in counted}
    return GlobalNorm(counted, shards, Position(Layout()), Axis.alone("world"), torch.device("cpu"))


@pytest.mark.parametrize("numel", [1, 4095, 4096, 10_001, 6_000_000])
@pytest.mark.parametrize("dtype, digits", [(torch.float32, 1e-7), (torch.float64, 1e-14)])
def test_the_norm_keeps_its_digits_at_any_length(numel, dtype, digits):
    x = torch.randn(numel, dtype=dtype, generator=torch.Generator().manual_seed(numel))
    norm = norm_of({"a": [x]})().item()
    assert norm**2 == pytest.approx(torch.dot(x.double(), x.double()).item(), rel=digits)


def test_the_views_of_one_weight_share_its_slot():
    counted = {"b": [torch.tensor([3.0]), torch.tensor([[4.0]])], "a": [torch.tensor([12.0])]}
    assert norm_of(counted)().item() == 13.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_makes_the_norm_not_finite(bad):
    x = torch.zeros(9000)
    x[5000] = bad
    assert not norm_of({"a": [x]})().isfinite()


def test_weights_that_are_neighbours_in_memory_count_each_in_full():
    """Also with a gap between them, and where memory of another tensor follows."""
    flat = torch.randn(5 * 4096 + 10, generator=torch.Generator().manual_seed(3))
    views = [flat[:4096], flat[4096 : 3 * 4096], flat[3 * 4096 + 10 :], torch.randn(4096)]
    norm = norm_of({str(i): [view] for i, view in enumerate(views)})
    assert [len(rows) for rows in norm.rows] == [3, 2, 1]
    assert norm().item() == pytest.approx(torch.cat(views).double().norm().item(), rel=1e-7)


def test_a_rank_without_weights_has_norm_zero():
    assert norm_of({})().item() == 0.0


@pytest.mark.parametrize(
    "norm, most, factor",
    [
        (2.0, 1.0, 1 / 2.000001),
        (0.5, 1.0, 1.0),
        (5.0, 0.0, 1.0),
        (0.0, 1.0, 1.0),
        (1.0, 1.0, 1 / 1.000001),
    ],
)
def test_clipping_shrinks_and_never_stretches(norm, most, factor):
    assert clip_factor(norm, most) == factor
