"""The randomness of dropout as a function: fair and independent."""

import pytest
import torch

from megascratch.parallel.random import keep_mask, mix64, mixed, sample_keys

MANY = torch.arange(1 << 20)


def keys(seed: int = 1, site: int = 0, samples: int = 1) -> torch.Tensor:
    return sample_keys(seed, site, torch.arange(samples))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_elements_are_dropped_at_the_asked_rate(p):
    dropped = 1 - keep_mask(keys(), MANY, p).double().mean().item()
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / len(MANY)) ** 0.5 + 1e-12)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1].item()


@pytest.mark.parametrize(
    "other", ["next sample", "next site", "next seed", "next element", "element 64 on"]
)
def test_neighbouring_keys_and_elements_are_independent(other):
    """Correlation of 2^20 pairs: 5 sigma is 0.005."""
    base = keep_mask(keys(), MANY, 0.5)
    neighbour = {
        "next sample": lambda: keep_mask(keys(samples=2)[1], MANY, 0.5),
        "next site": lambda: keep_mask(keys(site=1), MANY, 0.5),
        "next seed": lambda: keep_mask(keys(seed=2), MANY, 0.5),
        "next element": lambda: base.roll(1),
        "element 64 on": lambda: base.roll(64),
    }[other]()
    assert abs(correlation(base, neighbour)) < 0.005


def test_bytes_of_mixed_counters_are_evenly_spread():
    """Chi squared over 256 values in each byte: 255 +- 5 sigma of 22.6."""
    mixed = mix64(MANY)
    for shift in range(0, 64, 8):
        counts = torch.bincount((mixed >> shift) & 255, minlength=256).double()
        expected = len(MANY) / 256
        assert 140 < ((counts - expected) ** 2 / expected).sum() < 370


def test_mixing_is_one_to_one_and_the_published_function():
    """First outputs of SplitMix64 started at 0 (Vigna's splitmix64.c): the finaliser of 1, 2, 3 x golden."""
    unsigned = [int(x) & (1 << 64) - 1 for x in mix64(torch.tensor([1, 2, 3]))]
    assert unsigned == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert len(mix64(MANY).unique()) == len(MANY)


@pytest.mark.parametrize("number", [0, 1, 42, 1234, -5, 2**62 + 1, 2**63 - 1, -(2**63)])
def test_a_number_is_mixed_as_a_tensor_is(number):
    assert mixed(number) == mix64(torch.tensor(number)).item()
