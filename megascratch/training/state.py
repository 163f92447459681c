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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TrainState":
        """What an older checkpoint does not know has its default."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})
