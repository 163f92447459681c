"""Builds the model chunks of a rank from the settings, with their shard table and initial weights."""

from contextlib import nullcontext

import torch

from megascratch.config.resolve import ResolvedModel, ResolvedParallel
from megascratch.model.chunk import ModelChunk
from megascratch.model.table import layers_of_stages, shard_table
from megascratch.parallel.context_axes import ContextAxes
from megascratch.parallel.initial_values import NormalBlock, fill_all, normal_blocks
from megascratch.parallel.kept_state import kept_state, widen_buffers
from megascratch.parallel.mesh import Mesh
from megascratch.pipeline.schedule import Placement


def build_chunks(
    model: ResolvedModel,
    parallel: ResolvedParallel,
    mesh: Mesh,
    dtype: torch.dtype,
    seed: int,
    placement: Placement | None = None,
) -> list[ModelChunk]:
    """This rank's model chunks with their initial weights, in the order of their virtual stages.

    Virtual stage v holds the v-th slice of the layers; `placement` (default: a loop) assigns stages to ranks.
    """
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    placement = placement or Placement(mesh.pp.size, chunks)
    stages = layers_of_stages(model, parallel, mesh.pp.size)
    built = []
    for number in range(chunks):
        stage = placement.virtual_stage(mesh.pp.rank, number)
        first = stage == 0
        last = stage == len(stages) - 1
        # weights that move to the meta device would lose their ties, so there they are made on it
        with mesh.device if mesh.device.type == "meta" else nullcontext():
            chunk = ModelChunk(
                model,
                stages[stage],
                first,
                last,
                mesh.tp,
                parallel.sequence_parallel,
                seed,
                ContextAxes(mesh.cp, parallel.cp_comm_type, mesh.cp_heads, mesh.cp_ring),
            )
        chunk.to(device=mesh.device, dtype=dtype)
        widen_buffers(chunk)
        if mesh.device.type != "meta":
            initialise(chunk, mesh, seed)
        built.append(chunk)
    return built


@torch.no_grad()
def initialise(chunk: ModelChunk, mesh: Mesh, seed: int) -> None:
    """Sets every weight and kept state to a function of (seed, name, global index), whatever the layout (law 2).
    Padding is zero."""
    shards = shard_table(chunk)
    blocks: list[NormalBlock] = []
    for name, parameter in (*chunk.named_parameters(), *kept_state(chunk, shards)):
        shard = shards[name]
        padded = any(cut.padded for cut in shard.cuts)
        parameter.fill_(0.0 if padded else shard.fill)
        if shard.std == 0:
            continue
        for piece in shard.pieces(mesh.position):
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
    """Compiles each block in place with torch.compile. Blocks of the same `LayerSpec` share their graphs: what differs
    between them is numbers, such as the site of a dropout, which are arguments of a graph."""
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for chunk in chunks:
        for block in chunk.blocks():
            block.compile()
