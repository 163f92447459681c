"""The ranks that share each sequence (context parallelism), as an attention layer sees them."""

from dataclasses import dataclass, field
from typing import Literal

from megascratch.parallel.axis import Axis

CommType = Literal["p2p", "all_gather", "a2a", "a2a+p2p"]


@dataclass(frozen=True)
class ContextAxes:
    """The ranks that share each sequence, and how they attend; `axis` of size 1: each has whole samples."""

    axis: Axis
    comm_type: CommType = "p2p"
    heads: Axis = field(default_factory=lambda: Axis.alone("cp_heads"))
    """With a2a+p2p: those of them that exchange heads for tokens."""
    ring: Axis = field(default_factory=lambda: Axis.alone("cp_ring"))
    """With a2a+p2p: those of them that form a ring."""

    @classmethod
    def alone(cls) -> "ContextAxes":
        return cls(Axis.alone("cp"))
