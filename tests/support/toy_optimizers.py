"""Two optimizers of a second kind, each with the same formula in a plain loop over whole tensors as its oracle.

`AdEMAMix` keeps three tensors for every weight; `UnitMomentum` needs whole matrices. `with_toys` calls a function on a
rank while the setting `optimizer` knows both.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch

from megascratch.config.settings import OptimConfig
from megascratch.optim import OPTIMIZERS
from megascratch.optim.optimizer import Optimizer, Stretch

SLOW = 0.99  # decay rate of the slow momentum
ALPHA = 2.0  # its part in the update


class Toy(Optimizer):
    """What both have in common: stretches, settings and a count."""

    steps = 0

    def __init__(self, stretches: Sequence[Stretch], optim: OptimConfig):
        self.stretches = list(stretches)
        self.optim = optim

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        for stretch in self.stretches:
            if stretch.decays:
                stretch.weight.mul_(1 - lr * self.optim.weight_decay)
            self.move(stretch, lr)

    @abstractmethod
    def move(self, stretch: Stretch, lr: float) -> None: ...


class AdEMAMix(Toy):
    """Adam with a second, slow momentum (Pagliardini et al. 2024, arXiv 2409.03137), without its warm-ups."""

    state_names = ("fast", "slow", "second")

    def move(self, stretch: Stretch, lr: float) -> None:
        fast, slow, second = (stretch.state[name] for name in self.state_names)
        beta1, beta2 = self.optim.adam_beta1, self.optim.adam_beta2
        fast.lerp_(stretch.grad, 1 - beta1)
        slow.lerp_(stretch.grad, 1 - SLOW)
        second.mul_(beta2).addcmul_(stretch.grad, stretch.grad, value=1 - beta2)
        size = (second / (1 - beta2**self.steps)).sqrt_().add_(self.optim.adam_eps)
        momentum = fast / (1 - beta1**self.steps) + ALPHA * slow
        stretch.weight.addcdiv_(momentum, size, value=-lr)


class UnitMomentum(Toy):
    """Moves every weight by its momentum, scaled to Frobenius norm 1."""

    state_names = ("momentum",)
    needs_whole_matrices = True

    def move(self, stretch: Stretch, lr: float) -> None:
        momentum = stretch.state["momentum"].mul_(self.optim.adam_beta1).add_(stretch.grad)
        stretch.weight.sub_(lr * momentum / momentum.norm())


TOYS: dict[str, type[Optimizer]] = {"ademamix": AdEMAMix, "unit": UnitMomentum}


def with_toys(function: Callable, *args: Any) -> Any:
    """On a rank."""
    with patch.dict(OPTIMIZERS, TOYS):
        return function(*args)


# ---- the oracles -----------------------------------------------------------------------------------------------


class Plain(torch.optim.Optimizer):
    """A loop over whole tensors."""

    def __init__(self, groups: list[dict]):
        super().__init__(groups, {"lr": 0.0})
        self.taken = 0

    @torch.no_grad()
    def step(self) -> None:
        self.taken += 1
        for group in self.param_groups:
            for w in group["params"]:
                new = self.moved(w, w.grad, self.state[w], group["lr"], group["weight_decay"])
                w.copy_(new)

    @abstractmethod
    def moved(self, w, g, state, lr, decay): ...


class PlainAdEMAMix(Plain):
    """The paper's algorithm, line by line."""

    def moved(self, w, g, state, lr, decay):
        zero = torch.zeros_like(w)
        m1, m2, nu = (state.get(name, zero) for name in ("fast", "slow", "second"))
        m1 = 0.9 * m1 + 0.1 * g
        m2 = 0.99 * m2 + 0.01 * g
        nu = 0.99 * nu + 0.01 * g**2
        state.update(fast=m1, slow=m2, second=nu)
        m1_hat = m1 / (1 - 0.9**self.taken)
        nu_hat = nu / (1 - 0.99**self.taken)
        return w - lr * ((m1_hat + 2 * m2) / (nu_hat**0.5 + 1e-8)) - lr * decay * w


class PlainUnitMomentum(Plain):
    def moved(self, w, g, state, lr, decay):
        m = 0.9 * state.get("momentum", 0.0) + g
        state["momentum"] = m
        return w - lr * decay * w - lr * m / (m**2).sum().sqrt()
