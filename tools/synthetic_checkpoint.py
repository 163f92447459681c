"""Writes checkpoints of runs on thousands of ranks, in one process: real names, boxes, manifest and table of chunks,
and data files that hold only zeros and take no room on a disk.

    held = held_by_rank(config, rank)         # what one rank of the layout holds, ZeRO-1's ranges included
    path = write_checkpoint(folder, step, map(partial(held_by_rank, config), range(world)), state)

So a save or a resume of one rank of such a run can be tried and measured.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from megascratch.checkpoint.backend.local import LocalStepWriter
from megascratch.checkpoint.format.chunk_table import DataFile
from megascratch.checkpoint.format.file_format import FileLayout, arrange
from megascratch.checkpoint.format.io import checksum
from megascratch.checkpoint.save import WriteTable, step_contents, write_table
from megascratch.checkpoint.steps import step_folder
from megascratch.checkpoint.write_plan import own_chunks
from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedConfig
from megascratch.data_parallel.bucket_layout import BucketEntry, default_bucket_size, plan_buckets
from megascratch.data_parallel.without_gradient import tied_pieces
from megascratch.model.table import layers_of_stages, weight_table
from megascratch.parallel.grid import Position
from megascratch.parallel.shard import Shard
from megascratch.parallel.sharded_tensor import ShardedTensor, held_piece, pieces_in_range

KINDS = {
    "param": torch.bfloat16,
    "optim.exp_avg": torch.float32,
    "optim.exp_avg_sq": torch.float32,
    "optim.master": torch.float32,
}
"""The tensors of a weight in a run in bf16 with AdamW."""


def held_by_rank(
    config: ResolvedConfig,
    rank: int,
    table: Mapping[str, Shard] | None = None,
    device: str = "meta",
) -> list[ShardedTensor]:
    """What a rank holds in a run in bf16, with AdamW, and with ZeRO-1 if the settings ask for it.

    Args:
        config: of a dense model whose pipeline has one stage on each rank.
        table: the model's weights (`weight_table`), which is the same for all ranks.
        device: of the tensors, which are zeros; on "meta" they take no memory.
    """
    layout = Layout.of(config.parallel)
    position = Position(layout, rank)
    at = position.coords("dense")
    if table is None:
        table = weight_table(config.model, config.parallel, layout)
    stages = layers_of_stages(config.model, config.parallel, layout.pp)
    entries = []
    for name, shard in table.items():
        if _stage_of(name, stages) == at["pp"]:
            shape = shard.local_shape(layout)
            alone = shard.tied is not None
            entries.append(BucketEntry(name, shape, torch.bfloat16, "dense", shard.decays, alone))
    weights = sum(torch.Size(entry.shape).numel() for entry in entries)
    ranks = {"dense": layout.dp}
    size = config.parallel.ddp_bucket_size or default_bucket_size(weights, layout.dp)
    sizes = {"dense": size}
    zero1 = config.parallel.use_distributed_optimizer
    held = []
    for plan in plan_buckets(entries, sizes, ranks):
        start, stop = (0, plan.size)
        if zero1:
            length = plan.size // layout.dp
            start = at["dp"] * length
            stop = start + length
        for place in plan.places:
            shard = table[place.name]
            first = max(start, place.start) - place.start
            last = min(stop, place.stop) - place.start
            pieces = pieces_in_range(shard, position, first, max(first, last))
            for piece in tied_pieces(pieces, place.name, shard):
                if not zero1:
                    piece = piece.replicated("data", at["dp"], layout.dp)
                for kind, dtype in KINDS.items():
                    tensor = torch.zeros(piece.whole.shape, dtype=dtype, device=device)
                    name = f"{kind}.{shard.tied or place.name}"
                    held.append(held_piece(name, shard, piece, tensor))
    return held


def _stage_of(name: str, stages: list[range]) -> int:
    if name.startswith("layers."):
        layer = int(name.split(".")[1])
        return next(stage for stage, layers in enumerate(stages) if layer in layers)
    return 0 if name.startswith("embedding.") else len(stages) - 1


def write_checkpoint(
    folder: Path, step: int, held_by_ranks: Iterable[list[ShardedTensor]], state: dict[str, Any]
) -> Path:
    """Writes the step that these ranks would write together, with zeros for all data. Returns its folder.

    Args:
        held_by_ranks: what each rank holds, in rank order; the tensors may be on "meta".

    Raises: ValueError unless the boxes fill every tensor.
    """
    draft = LocalStepWriter.begin(Path(step_folder(folder, step)), folder, 0)
    tables: list[WriteTable | None] = []
    for rank, held in enumerate(held_by_ranks):
        layout = arrange(own_chunks(held))
        if layout.slots:
            tables.append(_write_file(draft, draft.file_name(rank), layout))
    draft.commit(step_contents(step, state, tables, draft.table_name))
    return draft.final


def _write_file(draft: LocalStepWriter, name: str, layout: FileLayout) -> WriteTable:
    with (draft.private / name).open("xb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    record = DataFile(name, layout.size, len(layout.header), checksum(layout.header))
    return write_table(
        record, layout, [_checksum_of_zeros(slot.tensor.nbytes) for slot in layout.slots]
    )


@cache
def _checksum_of_zeros(nbytes: int) -> int:
    return checksum(bytes(nbytes))
