"""Settings that say which layers are of a kind: a sliding window in all but every sixth, no rotary positions in every
fourth. Needs no torch.

A pattern is a list: one number N picks every Nth layer, counted from 1; several are one 0 or 1 for each layer. Both
are as in Megatron-LM (`window_attn_skip_freq`, `no_rope_freq`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

PATTERNS = ("window_attn_skip_freq", "no_rope_freq")
"""The settings that are patterns."""


def has_window(pattern: Sequence[int] | None, layer: int) -> bool:
    """Whether a layer (counted from 0) has the sliding window: None: all have; N: all but every Nth; else those
    with 1."""
    if pattern is None:
        return True
    if len(pattern) == 1:
        return (layer + 1) % pattern[0] != 0
    return pattern[layer] == 1


def is_unrotated(pattern: Sequence[int] | None, layer: int) -> bool:
    """Whether a layer (counted from 0) does not rotate: None: all rotate; N: every Nth does not; else those with 1."""
    if pattern is None:
        return False
    if len(pattern) == 1:
        return (layer + 1) % pattern[0] == 0
    return pattern[layer] == 1


def fitted(pattern: Sequence[int], layers: int) -> list[int]:
    """The pattern for another number of layers: cut, or begun again."""
    if len(pattern) == 1:
        return list(pattern)
    return [pattern[layer % len(pattern)] for layer in range(layers)]


def fitted_patterns(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The patterns among the settings `values`, for another number of layers."""
    changes = {}
    for name in PATTERNS:
        if values[name]:
            changes[name] = fitted(values[name], layers)
    return changes
