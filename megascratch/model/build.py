"""Builds the model chunks of a rank from the settings, with their shard table and initial weights."""

from dataclasses import replace

import torch

from megascratch.config.pipeline_split import layer_cut
from megascratch.config.settings import ModelConfig, ParallelConfig
from megascratch.model.chunk import ModelChunk
from megascratch.parallel.initial_values import NormalBlock, fill_all, normal_blocks
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.shard import Shard
from megascratch.pipeline.schedule import Placement

EMBEDDING_WEIGHT = "embedding.word.weight"
HEAD_WEIGHT = "head.weight"


def build_chunks(
    model: ModelConfig,
    parallel: ParallelConfig,
    mesh: Mesh,
    dtype: torch.dtype,
    seed: int,
    placement: Placement | None = None,
) -> list[ModelChunk]:
    """This rank's model chunks with their initial weights, in the order of their virtual stages.

    Virtual stage v holds the v-th slice of the layers; `placement` (default: a loop) assigns stages to ranks.
    """
    chunks = parallel.num_virtual_stages_per_pipeline_rank or 1
    placement = placement or Placement(mesh.pp.size, chunks)
    cut = layer_cut(
        model.num_layers,
        mesh.pp.size,
        chunks,
        parallel.decoder_first_pipeline_num_layers,
        parallel.decoder_last_pipeline_num_layers,
        parallel.pipeline_model_parallel_layout,
    )
    built = []
    for number in range(chunks):
        stage = placement.virtual_stage(mesh.pp.rank, number)
        start = sum(cut[:stage])
        layers = range(start, start + cut[stage])
        first = stage == 0
        last = stage == len(cut) - 1
        chunk = ModelChunk(model, layers, first, last, mesh.tp, parallel.sequence_parallel, seed)
        chunk.to(device=mesh.device, dtype=dtype)
        initialise(chunk, mesh, seed)
        built.append(chunk)
    return built


def shard_table(chunk: ModelChunk) -> dict[str, Shard]:
    """Maps each full parameter name to its shard. Tied copies on different stages name the weight they are tied to."""
    table: dict[str, Shard] = {}
    for prefix, module in chunk.named_modules():
        for name, shard in getattr(module, "shards", {}).items():
            table[f"{prefix}.{name}"] = shard
    if not chunk.model.untie_embeddings_and_output_weights and chunk.first != chunk.last:
        for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT):
            if name in table:
                table[name] = replace(table[name], tied=EMBEDDING_WEIGHT)
    return table


@torch.no_grad()
def initialise(chunk: ModelChunk, mesh: Mesh, seed: int) -> None:
    """Sets every weight to a function of (seed, name, global index), whatever the layout (law 2). Padding is zero."""
    sizes = mesh.grid.sizes
    coords = mesh.coords
    shards = shard_table(chunk)
    blocks: list[NormalBlock] = []
    for name, parameter in chunk.named_parameters():
        shard = shards[name]
        parameter.fill_(0.0 if shard.padded else shard.fill)
        if shard.std == 0:
            continue
        for piece in shard.pieces(sizes, coords):
            blocks += normal_blocks(
                seed,
                shard.tied or name,
                shard.shape,
                piece.whole,
                parameter.detach()[piece.local.slices],
                shard.std,
                shard.fill,
            )
    fill_all(blocks)


def compile_blocks(chunks: list[ModelChunk]) -> None:
    """Compiles each block in place with torch.compile. Blocks of the same `LayerSpec` share one graph."""
    for chunk in chunks:
        for block in chunk.blocks():
            block.compile()
