"""`TrainState`: the few numbers that, with the tensors, are all that survives a restart."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Position of a run. Random streams and the data order are functions of it, so nothing else is kept."""

    step: int = 0
    consumed_samples: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)
    """Of the last good steps, as far as a spike is judged by them."""
    bad_steps: int = 0
    """In a row."""
    skipped_samples: list[list[int]] = field(default_factory=list)
    """[first, stop) of what is not read: samples are counted without them."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TrainState":
        """What an older checkpoint does not know has its default."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})
