"""The weights of the model by name, each with its shard: those of one chunk, or of the whole model, whose table every
rank makes without communication.
"""

from dataclasses import replace

import torch
from torch import nn

from megascratch.config.layers import layers_of
from megascratch.config.layout import Layout
from megascratch.config.pipeline_split import cut_of
from megascratch.config.resolve import ResolvedModel, ResolvedParallel
from megascratch.model.block import block_of_each_kind
from megascratch.model.chunk import ModelChunk
from megascratch.parallel.axis import Axis
from megascratch.parallel.shard import Shard

EMBEDDING_WEIGHT = "embedding.word.weight"
HEAD_WEIGHT = "head.weight"


def weight_table(
    model: ResolvedModel, parallel: ResolvedParallel, layout: Layout
) -> dict[str, Shard]:
    """Every weight of the model in the order of the stages, from modules without memory: one block of each kind.

    Args:
        model, parallel: derived settings.
        layout: the sizes that `parallel` asks for.
    """
    tp = Axis("tp", size=layout.tp)
    sequence_parallel = parallel.sequence_parallel and layout.tp > 1
    specs = layers_of(model)
    blocks = block_of_each_kind(specs, tp, sequence_parallel)
    shards_of_kind = {spec: _shards(block) for spec, block in blocks.items()}
    stages = layers_of_stages(model, parallel, layout.pp)
    table: dict[str, Shard] = {}
    for stage, layers in enumerate(stages):
        first = stage == 0
        last = stage == len(stages) - 1
        with torch.device("meta"):
            without_blocks = ModelChunk(model, range(0), first, last, tp, sequence_parallel)
        ends = shard_table(without_blocks)
        for name in ends:
            if name.startswith("embedding."):
                table[name] = ends[name]
        for layer in layers:
            for name, shard in shards_of_kind[specs[layer]].items():
                table[f"layers.{layer}.{name}"] = shard
        table |= ends  # the embedding keeps its place at the beginning
    return table


def layers_of_stages(model: ResolvedModel, parallel: ResolvedParallel, stages: int) -> list[range]:
    """The numbers of the layers that each virtual stage holds, in model order."""
    cut = cut_of(model.num_layers, stages, parallel)
    layers = []
    start = 0
    for length in cut:
        layers.append(range(start, start + length))
        start += length
    return layers


def shard_table(chunk: ModelChunk) -> dict[str, Shard]:
    """Maps the full name of each parameter and kept state to its shard. Tied copies on different stages name the weight
    they are tied to."""
    table = _shards(chunk)
    if not chunk.model.untie_embeddings_and_output_weights and chunk.first != chunk.last:
        for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT):
            if name in table:
                table[name] = replace(table[name], tied=EMBEDDING_WEIGHT)
    return table


def _shards(module: nn.Module) -> dict[str, Shard]:
    """The shards that the parts of a module declare, by name."""
    table: dict[str, Shard] = {}
    for prefix, part in module.named_modules():
        for name, shard in getattr(part, "shards", {}).items():
            table[f"{prefix}.{name}"] = shard
    return table
