"""Counts parameters and floating-point operations from the modules themselves, which are built without memory, on
torch's meta device: one block of each kind, whatever the number of layers.
"""

from collections import Counter

import torch
from torch import nn

from megascratch.config.layers import layers_of
from megascratch.config.resolve import ResolvedModel
from megascratch.model.block import Block, block_of_each_kind
from megascratch.model.chunk import ModelChunk
from megascratch.parallel.axis import Axis


def flops_per_token(model: ResolvedModel, seq_length: int) -> float:
    """FLOPs of forward and backward per token: 6 per weight of every matrix product (with the output matrix, without
    the embedding look-up) and 12 x layers x width x sequence for attention, counted in full although it is causal
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B); where a layer has a sliding window, that in place of the
    sequence. Recomputation and padding are not counted."""
    forward = 0
    for block, layers in _blocks(model):
        forward += layers * block.flops(seq_length)
    head = _without_blocks(model).head
    assert head is not None
    # backward: one such product for the gradient of the input, and one for that of the weight
    return 3 * (forward + head.flops())


def parameters(model: ResolvedModel) -> int:
    """The number of parameters of the entire model, padding left out; a tied weight counts once."""
    total = _weights(_without_blocks(model))
    for block, layers in _blocks(model):
        total += layers * _weights(block)
    return total


def _blocks(model: ResolvedModel) -> list[tuple[Block, int]]:
    """A block of each kind, and how many layers are of that kind."""
    specs = layers_of(model)
    blocks = block_of_each_kind(specs, Axis.alone("tp"), sequence_parallel=False)
    layers = Counter(specs)
    return [(block, layers[spec]) for spec, block in blocks.items()]


def _without_blocks(model: ResolvedModel) -> ModelChunk:
    """Embedding, final norm and head."""
    with torch.device("meta"):
        return ModelChunk(model, range(0), True, True, Axis.alone("tp"))


def _weights(module: nn.Module) -> int:
    total = 0
    for part in module.modules():
        weights = dict(part.named_parameters(recurse=False))
        for name, shard in getattr(part, "shards", {}).items():
            if name in weights:  # state without a gradient has a shard, too
                total += shard.numel
    return total
