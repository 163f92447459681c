"""The training state that a checkpoint stores in addition to tensors: step, consumed samples, loss scale, and more."""

from dataclasses import asdict, dataclass, field
from typing import Any


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TrainState":
        """The state stored in a checkpoint. Fields that an older checkpoint lacks get their defaults."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})
