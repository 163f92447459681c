"""What the schedules of a run say of a step: the learning rate, that of the embedding and of the output layer, and the
weight decay. Pure functions of the position in the run, like the learning rate.

The weight decay moves from `start_weight_decay` to `end_weight_decay` over the entire run, as in Megatron-LM's
OptimizerParamScheduler: linearly, or along half a cosine.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from megascratch.config.resolve import ResolvedTraining
from megascratch.config.settings import OptimConfig
from megascratch.optim.lr_schedule import learning_rate


class OtherRates(NamedTuple):
    """What schedules say of a step in addition to its learning rate. None: there is no such schedule."""

    decoupled_lr: float | None = None
    """Learning rate of the embedding and of the output layer; None: the one of all weights."""
    weight_decay: float | None = None
    """None: the setting `weight_decay` at every step."""

    def columns(self) -> dict[str, float]:
        """The columns of a log row."""
        columns = {}
        if self.decoupled_lr is not None:
            columns["decoupled_learning_rate"] = self.decoupled_lr
        if self.weight_decay is not None:
            columns["weight_decay"] = self.weight_decay
        return columns


NO_OTHERS = OtherRates()


def rates_of_step(
    optim: OptimConfig, training: ResolvedTraining, step: int, consumed_samples: int
) -> tuple[float, OtherRates]:
    """The learning rate of step `step` (0-based), before which `consumed_samples` were consumed, and its others."""
    batch_size = training.global_batch_size
    lr = learning_rate(optim, step, consumed_samples, batch_size)
    decoupled_lr = None
    if optim.decoupled_lr is not None:
        own = decoupled(optim)
        decoupled_lr = learning_rate(own, step, consumed_samples, batch_size)
    decay = None
    if optim.weight_decay_incr_style != "constant":
        decay = weight_decay(optim, training, step, consumed_samples)
    return lr, OtherRates(decoupled_lr, decay)


def decoupled(optim: OptimConfig) -> OptimConfig:
    """The settings with the rates of the embedding and of the output layer as lr and min_lr. `decoupled_lr` is set."""
    assert optim.decoupled_lr is not None
    min_lr = optim.min_lr if optim.decoupled_min_lr is None else optim.decoupled_min_lr
    return replace(optim, lr=optim.decoupled_lr, min_lr=min_lr)


def weight_decay(
    optim: OptimConfig, training: ResolvedTraining, step: int, consumed_samples: int
) -> float:
    """The weight decay of a step. Its position has the unit of the learning rate's; both ends are set."""
    start = optim.start_weight_decay
    end = optim.end_weight_decay
    assert start is not None and end is not None
    if training.train_samples is not None:
        position = consumed_samples
        length = training.train_samples
    else:
        assert training.train_iters is not None
        position = step
        length = training.train_iters
        if optim.lr_schedule_unit == "samples":
            position = consumed_samples
            length *= training.global_batch_size
    if position > length:
        return end
    done = position / length
    if optim.weight_decay_incr_style == "cosine":
        done = 0.5 * (math.cos(math.pi * (1 - done)) + 1.0)
    return start + done * (end - start)
