"""An MLP that keeps state without a gradient: a moving average of the size of each hidden unit, which divides it, and
the number of tokens that have been learned from. In one process the same by plain sums over a step.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from megascratch.config.layers import MLPSpec
from megascratch.config.resolve import ResolvedConfig
from megascratch.layers.context import ForwardContext
from megascratch.layers.mlp import MLP
from megascratch.layers.sublayer import SublayerSite
from megascratch.model.block import FEED_FORWARDS
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.kept_state import KeepsState, counted
from megascratch.parallel.shard import Cut, Shard
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import (
    RunRecord,
    assert_same,
    config_of,
    gather,
    synthetic_batch,
    train_on_rank,
)
from tests.support.plain_runs import plain_run
from tests.support.trainers import build_trainer, load_and_train, train_and_save, train_steps

PACE = 0.25  # of the moving average


class MeteredMLP(MLP, KeepsState):
    """fc2(activation(fc1(x)) / sqrt(average of its square)); the average is split over tp as the units are."""

    def __init__(self, spec: MLPSpec, site: SublayerSite):
        super().__init__(spec, site)
        width, tp = spec.width, site.tp
        self.shards = {
            "square": Shard((width,), (Cut("tp", 0),), role="scalar", fill=1.0),
            "tokens": Shard((), role="scalar"),
        }
        self.register_buffer("square", torch.empty(width // tp.size))
        self.register_buffer("tokens", torch.empty((), dtype=torch.int64))
        sums = torch.empty(2, width // tp.size)  # of squares, of ones
        self.register_buffer("sums", sums, persistent=False)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        hidden = self.activation(self.fc1(x))  # [s, b, f/tp]
        wide = hidden.detach().to(self.square.dtype)
        ones = torch.full_like(self.square, wide[..., 0].numel())
        hidden = counted(hidden, torch.stack((wide.square().sum((0, 1)), ones)), self.sums)
        return self.fc2(hidden / self.square.sqrt().to(hidden.dtype))

    def begin_step(self) -> None:
        self.sums.zero_()

    def step_taken(self, data) -> None:
        squares, ones = all_reduce(self.sums.clone(), data)
        self.square.lerp_(squares / ones, PACE)
        self.tokens += int(ones[0].item())


def with_meters(function: Any, *args: Any) -> Any:
    """On a rank: calls the function while blocks have such MLPs."""
    with patch.dict(FEED_FORWARDS, mlp=MeteredMLP):
        return function(*args)


class PlainMeteredMLP(MLP):
    """The oracle: keeps what it has seen in a list, and knows nothing of steps."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.divisor: Tensor | float = 1.0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        hidden = self.activation(self.fc1(x))
        self.seen.append(hidden.detach())
        return self.fc2(hidden / self.divisor**0.5)

    def after_step(self) -> None:
        units = torch.cat([hidden.flatten(0, 1) for hidden in self.seen])  # [tokens, f]
        self.divisor = (1 - PACE) * self.divisor + PACE * (units**2).mean(0)
        self.seen.clear()


def plain(config: ResolvedConfig, steps: int) -> RunRecord:
    """The run in one process, with the state that checkpoints must hold worked out by hand."""
    with patch.dict(FEED_FORWARDS, mlp=PlainMeteredMLP):
        record, model = plain_run(config, steps, after_step=_after_step)
    tokens = torch.tensor(steps * config.training.global_batch_size * config.data.seq_length)
    for name, part in model.named_modules():
        if isinstance(part, PlainMeteredMLP):
            record.params[f"buffer.{name}.square"] = torch.as_tensor(part.divisor)
            record.params[f"buffer.{name}.tokens"] = tokens
    return record


def _after_step(of: torch.nn.Module) -> None:
    for part in of.modules():
        if isinstance(part, PlainMeteredMLP):
            part.after_step()


# ---- a law: the state changes only when a step is taken ----------------------------------------------------------


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of the state that layers keep."""
    return {
        held.name: held.tensor.clone() for held in trainer.held() if held.name.startswith("buffer.")
    }


def changes(what: str, config: ResolvedConfig) -> tuple[bool, bool]:
    """On a rank: whether the state has changed after one step was taken, and after something else happened."""
    trainer = build_trainer(config)
    train_steps(trainer, TrainState(), 1)
    before = state_of(trainer)
    train_steps(trainer, TrainState(1, 8), 1)
    taken = state_of(trainer)
    batches = [synthetic_batch(config, range(8, 9))] * 2
    if what == "a bad step":
        result = trainer.train_step(batches, 1e-2, judge=lambda loss, norm: "bad")
        assert result.skipped
    elif what == "an overflow":
        trainer.scale = replace(trainer.scale, scale=1e38)
        assert trainer.train_step(batches, 1e-2).skipped
    elif what == "nothing to learn":
        empty = [replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)) for batch in batches]
        assert trainer.train_step(empty, 1e-2).skipped
    else:
        trainer.evaluate(batches)
    after = state_of(trainer)
    changed = [not torch.equal(before[name], taken[name]) for name in taken]
    return all(changed), any(not torch.equal(taken[name], after[name]) for name in taken)


NOT_TAKEN: dict[str, dict[str, Any]] = {
    "a bad step": {},
    "an overflow": {"fp64": False, "fp16": True, "initial_loss_scale": 1024.0},
    "nothing to learn": {},
    "an evaluation": {},
}


def kept_state_changes_only_with_a_step(what: str, run: Callable) -> None:
    """Raises: AssertionError."""
    config = config_of(num_layers=2, data_parallel_size=2, **NOT_TAKEN[what])
    for changed, also_now in run(2, with_meters, changes, what, config):
        assert changed, "a step that was taken changes the state"
        assert not also_now, f"{what} changes the state"


def kept_state_is_plain(run: Callable) -> None:
    """Trains on two ranks with recomputation. Raises: AssertionError unless all is as in one plain process."""
    config = config_of(num_layers=2, data_parallel_size=2, recompute_granularity="full")
    found = gather(run(2, with_meters, train_on_rank, config, 3))
    assert_same(plain(config, 3), found, 1e-9)


def resumes(folder: Path, run: Callable) -> None:
    """Saves after two of four steps. Raises: AssertionError unless a new trainer takes the same last two."""
    config = config_of(num_layers=2, data_parallel_size=2)
    saved = run(2, with_meters, train_and_save, config, str(folder))
    resumed = run(2, with_meters, load_and_train, config, str(folder))
    for (told, tensors), (again, others) in zip(saved, resumed, strict=True):
        assert told == again, f"{told} and after a resume {again}"
        assert all(map(torch.equal, tensors, others))
