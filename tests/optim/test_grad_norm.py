"""One process's part of the norm; over ranks it is tested with data parallelism."""

import math

import pytest
import torch

from megascratch.config.layout import Layout
from megascratch.optim.grad_norm import GlobalNorm, clip_factor, norm_of
from megascratch.parallel.grid import Position
from megascratch.parallel.shard import Shard


def global_norm(counted, replicas=()):
    """Of one process."""
    shards = {name: Shard((1,)) for name in counted}
    return GlobalNorm(counted, replicas, shards, Position(Layout()), torch.device("cpu"))


def norm(counted):
    return norm_of(global_norm(counted).parts()[:-1]).item()


@pytest.mark.parametrize("numel", [1, 4095, 4096, 10_001, 6_000_000])
@pytest.mark.parametrize("dtype, digits", [(torch.float32, 1e-7), (torch.float64, 1e-14)])
def test_the_norm_keeps_its_digits_at_any_length(numel, dtype, digits):
    x = torch.randn(numel, dtype=dtype, generator=torch.Generator().manual_seed(numel))
    assert norm({"a": [x]}) ** 2 == pytest.approx(
        torch.dot(x.double(), x.double()).item(), rel=digits
    )


def test_the_views_of_one_weight_share_its_slot():
    counted = {"b": [torch.tensor([3.0]), torch.tensor([[4.0]])], "a": [torch.tensor([12.0])]}
    assert norm(counted) == 13.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_makes_the_norm_not_finite(bad):
    x = torch.zeros(9000)
    x[5000] = bad
    assert not math.isfinite(norm({"a": [x]}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 5.0])
def test_the_replica_of_another_rank_counts_nowhere_and_shows_what_is_not_finite(bad):
    parts = global_norm(
        {"a": [torch.tensor([3.0])]}, [torch.zeros(5000), torch.tensor([bad])]
    ).parts()
    assert norm_of(parts[:-1]).item() == 3.0
    assert parts[-1].isfinite().item() == math.isfinite(bad)


def test_weights_that_are_neighbours_in_memory_count_each_in_full():
    """Also with a gap between them, and where memory of another tensor follows."""
    flat = torch.randn(5 * 4096 + 10, generator=torch.Generator().manual_seed(3))
    views = [flat[:4096], flat[4096 : 3 * 4096], flat[3 * 4096 + 10 :], torch.randn(4096)]
    counted = {str(i): [view] for i, view in enumerate(views)}
    assert [len(rows) for rows in global_norm(counted).rows] == [3, 2, 1]
    assert norm(counted) == pytest.approx(torch.cat(views).double().norm().item(), rel=1e-7)


def test_a_rank_without_weights_has_norm_zero():
    assert norm({}) == 0.0


@pytest.mark.parametrize(
    "length, most, factor",
    [
        (2.0, 1.0, 1 / 2.000001),
        (0.5, 1.0, 1.0),
        (5.0, 0.0, 1.0),
        (0.0, 1.0, 1.0),
        (1.0, 1.0, 1 / 1.000001),
    ],
)
def test_clipping_shrinks_and_never_stretches(length, most, factor):
    assert clip_factor(length, most) == factor
