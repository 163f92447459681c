"""AdamW with decoupled weight decay of matrices only, on flat tensors.

(Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2.) Works on a few long flat tensors instead of many small
ones: one fused kernel over each. The caller owns the moments, so that a checkpoint can split them into boxes.
"""

from collections.abc import Sequence
from typing import Any

import torch

from megascratch.config.settings import OptimConfig
from megascratch.optim.optimizer import Optimizer, Stretch

try:
    # NVIDIA's package; the one named apex on PyPI is a different one
    from apex.optimizers import FusedAdam
except ImportError:
    FusedAdam = None


class AdamW(Optimizer):
    """Two moments for each weight. The same as torch's, but for who owns them."""

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, stretches: Sequence[Stretch], optim: OptimConfig):
        stretches = [stretch for stretch in stretches if stretch.weight.numel() > 0]
        decaying = [stretch.weight for stretch in stretches if stretch.decays]
        others = [stretch.weight for stretch in stretches if not stretch.decays]
        groups = [
            {"params": decaying, "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.taken = 0  # steps
        self.engine = _engine(groups, stretches, optim)
        for stretch in stretches:
            stretch.weight.grad = stretch.grad
            self.engine.state[stretch.weight].update(stretch.state)
        self.steps = 0

    @property
    def steps(self) -> int:
        """Updates so far: the bias correction depends on them."""
        return self.taken

    @steps.setter
    def steps(self, taken: int) -> None:
        self.taken = taken
        for group in self.engine.param_groups:
            group["step"] = taken  # where apex counts
            for weight in group["params"]:  # where torch counts
                self.engine.state[weight]["step"] = torch.tensor(float(taken), device=weight.device)

    def set_weight_decay(self, weight_decay: float) -> None:
        """The decay of matrices from the next step on."""
        self.engine.param_groups[0]["weight_decay"] = weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update at learning rate `lr`."""
        self.taken += 1
        for group in self.engine.param_groups:
            group["lr"] = lr
        self.engine.step()


def _engine(
    groups: list[dict], stretches: Sequence[Stretch], optim: OptimConfig
) -> torch.optim.Optimizer:
    """The fused kernel of NVIDIA apex if it is installed and all weights are fp32 on CUDA, else torch's."""
    settings: dict[str, Any] = {
        "lr": optim.lr,
        "betas": (optim.adam_beta1, optim.adam_beta2),
        "eps": optim.adam_eps,
    }
    if FusedAdam is not None and all(
        s.weight.is_cuda and s.weight.dtype == torch.float32 for s in stretches
    ):
        return FusedAdam(groups, adam_w_mode=True, set_grad_none=False, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)
