"""The tensors of a model that no gradient moves: frozen weights (``requires_grad`` is False), and what layers keep.

They are in no bucket, norm or optimizer. All data-parallel ranks hold them, and a checkpoint stores each once.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from megascratch.parallel.kept_state import kept_state
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.shard import Shard, ShardSlice
from megascratch.parallel.sharded_tensor import ShardedTensor, held_piece


def boxes_without_gradient(
    chunks: Iterable[nn.Module], shards: Mapping[str, Shard], mesh: Mesh
) -> dict[str, list[ShardedTensor]]:
    """The boxes that this rank holds of frozen weights (``param.*``) and of kept state (``buffer.*``); their copies are
    numbered over all ranks."""
    boxes: dict[str, list[ShardedTensor]] = defaultdict(list)
    for chunk in chunks:
        for kind, name, tensor in _tensors(chunk, shards):
            shard = shards[name]
            whole_name = shard.tied or name
            data = mesh.data_of(shard.view)
            for piece in tied_pieces(shard.pieces(mesh.position), name, shard):
                copy = piece.replicated(data.name, data.rank, data.size)
                view = tensor[piece.local.slices]
                box = held_piece(f"{kind}.{whole_name}", shard, copy, view)
                boxes[box.name].append(box)
    return dict(boxes)


def tied_pieces(pieces: list[ShardSlice], name: str, shard: Shard) -> list[ShardSlice]:
    """The blocks of a weight; those of a tied weight, of which two stages each hold a copy, are numbered over both."""
    if shard.tied is None:
        return pieces
    number = 0 if shard.tied == name else 1
    return [piece.replicated("tied", number, 2) for piece in pieces]


def _tensors(chunk: nn.Module, shards: Mapping[str, Shard]) -> Iterator[tuple[str, str, Tensor]]:
    for name, parameter in chunk.named_parameters():
        if not parameter.requires_grad:
            yield "param", name, parameter.detach()
    for name, buffer in kept_state(chunk, shards):
        yield "buffer", name, buffer
