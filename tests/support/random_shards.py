"""Random whole tensors in, the boxes of N ranks out: a cut that no parallelism explains, so that none is assumed; and
random `Shard`s of random layouts.
"""

import random
import zlib

import torch
from torch import Tensor

from megascratch.checkpoint.backend.backend import AnyLease
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.save import write_step
from megascratch.checkpoint.write_plan import agree_on_write_plan
from megascratch.config.layout import Layout
from megascratch.parallel.axis import Axis
from megascratch.parallel.control import Control
from megascratch.parallel.shard import MODEL_AXES, Box, CopyAxis, Cut, Part, Shard
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.parallel.transport import ProcessGroupTransport
from megascratch.storage.path import Place

SHAPES = {
    "param.embedding": ((37, 6), torch.bfloat16),
    "param.layers.0.qkv": ((18, 6), torch.float32),
    "param.layers.1.deep": ((3, 4, 5), torch.float16),
    "param.norm": ((7,), torch.float64),
    "optim.scalar": ((), torch.float32),
    "optim.counts": ((5,), torch.int64),
    "optim.nothing": ((0, 4), torch.float32),
}


def world(size: int = 1, rank: int = 0, group=None) -> Control:
    transport = group and ProcessGroupTransport(group, needs_host_memory=True)
    return Control(rank, size, [Axis("world", size, rank, tuple(range(size)), transport)])


def whole(name: str, shapes=SHAPES) -> Tensor:
    """The true tensor, from its name alone; some elements are NaN, infinite or -0."""
    shape, dtype = shapes[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if not dtype.is_floating_point:
        return torch.randint(-(2**60), 2**60, shape, generator=generator, dtype=dtype)
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if tensor.numel() > 4:
        tensor.view(-1)[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    return tensor


def bits(tensor: Tensor) -> list[int]:
    return (
        tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist()
    )


def random_boxes(shape: tuple[int, ...], cuts: int, draw: random.Random) -> list[Box]:
    """Disjoint boxes that fill a tensor: each cut halves a box somewhere along some dim."""
    boxes = [Box((0,) * len(shape), shape)]
    for _ in range(cuts):
        box = boxes.pop(draw.randrange(len(boxes)))
        dims = [dim for dim, size in enumerate(box.shape) if size > 1]
        if not dims:
            boxes.append(box)
            continue
        dim = draw.choice(dims)
        at = draw.randrange(box.start[dim] + 1, box.stop[dim])
        boxes.append(Box(box.start, (*box.stop[:dim], at, *box.stop[dim + 1 :])))
        boxes.append(Box((*box.start[:dim], at, *box.start[dim + 1 :]), box.stop))
    return boxes


def shards_of_rank(
    rank: int, ranks: int, seed: int, filled: bool, shapes=SHAPES
) -> list[ShardedTensor]:
    """What a rank holds of every tensor in the cut number `seed`: boxes that it alone holds, or shares with another.

    The tensors are views with strides, as ZeRO-1's are.
    """
    draw, held = random.Random(seed), []
    for name, (shape, dtype) in shapes.items():
        for box in random_boxes(shape, draw.randrange(2 * ranks), draw):
            owner = draw.randrange(ranks)
            reader = draw.randrange(ranks)
            holders = (owner, reader)[: 1 + (reader != owner)]
            both = (CopyAxis(f"ranks {holders}", 2),) if len(holders) == 2 else ()
            for copy, holder in enumerate(holders):
                if holder == rank:
                    room = torch.full((*box.shape, 2), 77).to(dtype)[..., 0]
                    if filled:
                        room.copy_(whole(name, shapes)[box.slices])
                    held.append(ShardedTensor(name, shape, box, room, copy, both))
    return held


def names_that_differ(held: list[ShardedTensor], shapes=SHAPES) -> list[str]:
    """The names whose tensor differs from the whole in any bit."""
    return [h.name for h in held if bits(h.tensor) != bits(whole(h.name, shapes)[h.box.slices])]


def random_layout(draw: random.Random) -> Layout:
    """Of up to 144 ranks, in both views."""
    ep, etp, tp = (draw.choice((1, 2, 3)) for _ in range(3))
    experts_fit = draw.choice((1, 2)) * ep * etp
    return Layout(tp=tp, pp=draw.choice((1, 2)), dp=experts_fit, ep=ep, etp=etp)


def random_shard(draw: random.Random, layout: Layout) -> Shard:
    """Cut over none to all axes of a view, each along another dim: plain, in parts with shared units, or padded."""
    view = draw.choice(("dense", "expert"))
    sizes, axes = layout.sizes(view), list(MODEL_AXES[view])
    draw.shuffle(axes)
    shape = [draw.randrange(1, 5) for _ in range(draw.randrange(1, 4))]
    dims = list(range(len(shape)))
    draw.shuffle(dims)
    cuts = []
    for axis, dim in zip(axes[: draw.randrange(len(axes) + 1)], dims, strict=False):
        ranks, kind = sizes[axis], draw.choice(("plain", "parts", "padded"))
        parts, padded = (), None
        if kind == "parts":
            units = [ranks, 2 * ranks, 1]
            for _ in range(draw.randrange(1, 4)):
                of_part = draw.choice(units)
                parts += (Part(of_part * draw.randrange(1, 3), of_part),)
            shape[dim] = sum(part.size for part in parts)
        elif kind == "padded":
            padded = ranks * draw.randrange(1, 5)
            shape[dim] = draw.randrange(1, padded + 1)
        else:
            shape[dim] = ranks * draw.randrange(1, 4)
        cuts.append(Cut(axis, dim, parts, padded))
    rest = [axis for axis in axes if axis not in {cut.axis for cut in cuts}]
    grad_sum = tuple(axis for axis in rest if draw.random() < 0.3)
    return Shard(tuple(shape), tuple(cuts), view, grad_sum=grad_sum)


def write(lease: AnyLease, step: int) -> Place:
    """One whole step by one process."""
    plan = agree_on_write_plan(shards_of_rank(0, 1, 0, filled=True), world())
    raw = lambda index: raw_bytes(plan.layout.slots[index].tensor)  # noqa: E731
    return write_step(lease.folder, lease.inside, step, plan, raw, {}, world())
