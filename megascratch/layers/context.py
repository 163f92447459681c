"""What all layers of one forward share: sample numbers, rotary angles, mask, and the cache of generation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from megascratch.config.layers import RopeSpec


@dataclass(frozen=True)
class ForwardContext:
    """The inputs that all blocks of one forward share."""

    samples: Tensor  # [b] sample numbers, the key of dropout
    # for each kind of rope of these blocks: cos [s, b, 1, d], sin [s, b, 1, d/2]
    rotary: Mapping[RopeSpec, tuple[Tensor, Tensor]] = field(default_factory=dict)
    mask: Tensor | None = None  # [b, 1, q, k] bool, True where attention is allowed; None: causal
    # by layer: what its mixer keeps of the previous tokens, as made by `Mixer.new_cache`; None: nothing is kept
    cache: Mapping[int, Any] | None = None
