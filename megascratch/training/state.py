"""The training state that a checkpoint stores in addition to tensors: step, consumed samples, loss scale, and more."""

from dataclasses import asdict, dataclass, field
from typing import Any

from megascratch.config.resolve import ResolvedTraining
from megascratch.config.settings import OptimConfig
from megascratch.optim.schedules import OtherRates, rates_of_step


@dataclass
class TrainState:
    """Position of a run. Random streams and the data order are functions of it, so nothing else is stored."""

    step: int = 0
    consumed_samples: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last good steps, by which a loss spike is judged."""
    bad_steps: int = 0
    """Number of bad steps in a row."""
    skipped_samples: list[list[int]] = field(default_factory=list)
    """[first, stop) ranges of samples that are not read. `consumed_samples` does not count them."""

    overflow_steps: int = 0
    """Steps so far whose fp16 gradients overflowed, and their samples: schedules may wait for them."""
    overflow_samples: int = 0

    def count(self, samples: int, overflowed: bool) -> None:
        """Counts a step of `samples` samples."""
        self.step += 1
        self.consumed_samples += samples
        if overflowed:
            self.overflow_steps += 1
            self.overflow_samples += samples

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TrainState":
        """The state stored in a checkpoint. Fields that an older checkpoint lacks get their defaults."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})


def next_rates(
    optim: OptimConfig, training: ResolvedTraining, state: TrainState
) -> tuple[float, OtherRates]:
    """The learning rate of the next step of a run, and its other rates."""
    step = state.step
    samples = state.consumed_samples
    if optim.lr_schedule_waits_for_overflows:
        step -= state.overflow_steps
        samples -= state.overflow_samples
    return rates_of_step(optim, training, step, samples)
