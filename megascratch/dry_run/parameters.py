"""Counts the parameters that a rank holds, from the shards of its weights."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

from megascratch.config.resolve import ResolvedModel
from megascratch.model.flops import parameters
from megascratch.parallel.grid import Position
from megascratch.parallel.shard import MODEL_AXES, Shard


class ParameterCount(NamedTuple):
    """Numbers of parameters; the padding of the vocabulary is left out."""

    held: int
    """Those that the rank computes with."""
    counted: int
    """Those of which it has the first copy: over all ranks, each parameter of the model once."""
    model: int
    """Those of the entire model."""


def count_parameters(
    model: ResolvedModel,
    chunks: Iterable[nn.Module],
    shards: Mapping[str, Shard],
    position: Position,
) -> ParameterCount:
    """Counts the parameters of one rank's chunks.

    Args:
        shards: the table of the whole model.
        position: that of the rank.
    """
    held = 0
    counted = 0
    for chunk in chunks:
        for name, _ in chunk.named_parameters():
            shard = shards[name]
            is_replica = not _is_first_data_rank(shard, position) or shard.tied not in (None, name)
            for piece in shard.pieces(position):
                size = math.prod(piece.local.shape)
                held += size
                if piece.copy == 0 and not is_replica:
                    counted += size
    return ParameterCount(held, counted, parameters(model))


def _is_first_data_rank(shard: Shard, position: Position) -> bool:
    """Whether the rank is the first of those that hold the same parts of the weight."""
    coords = position.coords(shard.view)
    return not any(at for axis, at in coords.items() if axis not in MODEL_AXES[shard.view])
