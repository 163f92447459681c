"""A sublayer alone on one rank."""

from typing import Any

from megascratch.layers.sublayer import SublayerSite
from megascratch.parallel.axis import Axis


def site_of(hidden_size: int, **changed: Any) -> SublayerSite:
    """Layer 0, with the seed 1."""
    given: dict[str, Any] = {
        "layer": 0,
        "hidden_size": hidden_size,
        "std": 0.02,
        "output_std": 0.1,
        "seed": 1,
        "tp": Axis.alone("tp"),
        "sequence_parallel": False,
    }
    return SublayerSite(**given | changed)
