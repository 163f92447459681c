"""AdamW over flat stretches is AdamW over tensors."""

from types import SimpleNamespace

import pytest
import torch

from megascratch.config.settings import OptimConfig
from megascratch.optim import adamw
from megascratch.optim.adamw import AdamW
from megascratch.optim.optimizer import Stretch

OPTIM = OptimConfig(weight_decay=0.1, adam_beta2=0.99)


def stretches(dtype=torch.float64):
    make = torch.Generator().manual_seed(1)
    for length, decays in ((100, True), (7, False), (33, True), (0, False)):
        weight, grad = (torch.randn(length, dtype=dtype, generator=make) for _ in range(2))
        state = {name: torch.zeros_like(weight) for name in AdamW.state_names}
        yield Stretch(weight, grad, state, decays)


def by_the_paper(stretch, rates):
    """Loshchilov and Hutter's algorithm 2, line by line."""
    weight, m, v = (
        stretch.weight.clone(),
        torch.zeros_like(stretch.weight),
        torch.zeros_like(stretch.weight),
    )
    for t, lr in enumerate(rates, 1):
        m = 0.9 * m + 0.1 * stretch.grad
        v = 0.99 * v + 0.01 * stretch.grad**2
        weight = weight - lr * 0.1 * stretch.decays * weight
        weight = weight - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
    return weight


def test_the_update_is_the_papers_with_decay_of_matrices_only():
    ours, rates = list(stretches()), [0.01, 0.02, 0.005]
    expected = [by_the_paper(stretch, rates) for stretch in ours]
    optimizer = AdamW(ours, OPTIM)
    for lr in rates:
        optimizer.step(lr)
    for stretch, weight in zip(ours, expected, strict=True):
        torch.testing.assert_close(stretch.weight, weight, rtol=1e-12, atol=1e-14)


def test_steps_and_moments_are_all_that_must_be_restored():
    straight, broken = list(stretches()), list(stretches())
    whole, before = AdamW(straight, OPTIM), AdamW(broken, OPTIM)
    for _ in range(4):
        whole.step(0.01)
    before.step(0.01)
    before.step(0.01)
    copies = []
    for weight, grad, state, decays in broken:
        kept = {name: tensor.clone() for name, tensor in state.items()}
        copies.append(Stretch(weight.clone(), grad.clone(), kept, decays))
    after = AdamW(copies, OPTIM)
    after.steps = before.steps
    after.step(0.01)
    after.step(0.01)
    assert after.steps == whole.steps == 4
    weights = [weight for group in after.engine.param_groups for weight in group["params"]]
    theirs = [weight for group in whole.engine.param_groups for weight in group["params"]]
    assert all(map(torch.equal, weights, theirs))


def test_nothing_to_update_is_no_error():
    optimizer = AdamW([], OPTIM)
    optimizer.step(0.1)
    assert optimizer.steps == 1


@pytest.mark.parametrize(
    "is_cuda, dtype, taken",
    [(True, torch.float32, True), (True, torch.float64, False), (False, torch.float32, False)],
)
def test_apex_is_taken_where_it_is_and_fits(monkeypatch, is_cuda, dtype, taken):
    class Apex:
        def __init__(self, groups, adam_w_mode, set_grad_none, lr, betas, eps):
            assert adam_w_mode and not set_grad_none

    monkeypatch.setattr(adamw, "FusedAdam", Apex)
    like = [SimpleNamespace(weight=SimpleNamespace(is_cuda=is_cuda, dtype=dtype))]
    engine = adamw._engine([{"params": [torch.zeros(3)], "weight_decay": 0.0}], like, OPTIM)
    assert isinstance(engine, Apex) is taken
