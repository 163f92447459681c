"""Configures activation recomputation on model chunks.

    selective           the core of attention (scores, softmax, dropout) of every layer
    full, uniform, n    units of n layers; each keeps only its input
    full, block, n      the first n layers of each chunk, one by one; the others keep everything

(Korthikanti et al. 2022, arXiv 2205.05198, section 5; Megatron-LM's names.)
"""

from collections.abc import Iterable

from megascratch.config.settings import ParallelConfig
from megascratch.model.chunk import Block, ModelChunk, RecomputeUnit


def set_recompute(chunks: Iterable[ModelChunk], parallel: ParallelConfig) -> None:
    """Sets the recomputation of all chunks, in place. `recompute_method` and `recompute_num_layers` must be derived."""
    for chunk in chunks:
        if parallel.recompute_granularity == "full":
            assert parallel.recompute_num_layers is not None
            chunk.units = units(len(chunk.layers), parallel.recompute_method == "block", parallel.recompute_num_layers)
        for block in chunk.layers.values():
            assert isinstance(block, Block)
            block.attention.recompute_core = parallel.recompute_granularity == "selective"


def units(layers: int, block: bool, number: int) -> list[RecomputeUnit]:
    """The recomputation units of a chunk, in order."""
    if block:
        alone = [RecomputeUnit(i, i + 1, True) for i in range(min(number, layers))]
        return alone + ([RecomputeUnit(number, layers, False)] if number < layers else [])
    return [RecomputeUnit(start, min(start + number, layers), True) for start in range(0, layers, number)]
