"""A model without a forward: weights of every kind of shard, whose gradients per sample are told by a random function.

So every rank can work out what one process would do, and what it must hold itself. `play` runs steps on a layout,
`serial` does the same with plain tensors and torch's optimizer; no code of the package takes part in the latter.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from megascratch.config.settings import OptimConfig, ParallelConfig
from megascratch.data_parallel import DATA_PARALLEL, DataParallel
from megascratch.optim.grad_norm import clip_factor
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.shard import Part, Shard, ShardSlice
from tests.support.rank_pool import mesh_of

SAMPLES = 4
VOCABULARY = Shard((11, 6), {"tp": 0}, padded=16, tied="embedding")
HEADS = (Part(16, 8), Part(4, 2), Part(4, 2))

BLOCK = {
    "norm": Shard((6,), grad_sum=("tp",), fill=1.0),
    "qkv": Shard((24, 6), {"tp": 0}, parts=HEADS),
    "qkv_bias": Shard((24,), {"tp": 0}, parts=HEADS),
    "out": Shard((6, 16), {"tp": 1}),
    "up": Shard((24, 6), {"tp": 0}),
    "bias": Shard((6,)),
}

LAYERS = [
    {"embedding": VOCABULARY, "positions": Shard((5, 6))},
    *({f"{number}_{name}": shard for name, shard in BLOCK.items()} for number in range(2)),
    {"head": VOCABULARY},
]

OPTIM = OptimConfig(weight_decay=0.1, adam_beta2=0.99, clip_grad=20.0)
RATES = [0.01, 0.02, 0.005, 0.01, 0.03]


def shards_of(stage: int, stages: int, tied: bool = True) -> dict[str, Shard]:
    """The shards of a stage, in order of registration."""
    per_stage = len(LAYERS) // stages
    layers = LAYERS[stage * per_stage : (stage + 1) * per_stage]
    own = None if not tied else "embedding"
    return {
        name: replace(shard, tied=own) if shard is VOCABULARY else shard
        for layer in layers
        for name, shard in layer.items()
    }


def draw(shape: tuple[int, ...], *key: object) -> Tensor:
    """Random numbers that are a function of the key."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return torch.randn(shape, dtype=torch.float64, generator=generator).bfloat16().double()


def share(shard: Shard, piece: ShardSlice, sizes: dict[str, int], coords: dict[str, int]) -> float:
    """The part of a gradient that a rank sees: ranks that must be summed see different parts of it."""
    tp = sizes["tp"]
    if shard.grad_sum:
        return (coords["tp"] + 1) / (tp * (tp + 1) / 2)
    copies = 1
    if shard.shared_parts(sizes):
        starts = [piece.whole.start for piece in shard.pieces(sizes, coords)]
        copies = max(1, tp // shard.parts[starts.index(piece.whole.start)].units)
    return (piece.copy % copies + 1) / (copies * (copies + 1) / 2)


def local(whole: Tensor, shard: Shard, mesh: Mesh, padding: float, partial: bool = False) -> Tensor:
    """A rank's tensor of a whole, or its part of a whole gradient."""
    sizes, coords = mesh.grid.sizes, mesh.coords
    mine = torch.full(shard.local_shape(sizes), padding, dtype=torch.float64)
    for piece in shard.pieces(sizes, coords):
        part = share(shard, piece, sizes, coords) if partial else 1.0
        mine[piece.local.slices] = whole[piece.whole.slices] * part
    return mine


class Stage(nn.Module):
    """Parameters by name; with both ends of a tied pair on one stage they are one parameter."""

    def __init__(self, shards: dict[str, Shard], mesh: Mesh, dtype: torch.dtype):
        super().__init__()
        for name, shard in shards.items():
            if shard.tied and name == "head" and "embedding" in shards:
                self.register_parameter(name, self.embedding)
            else:
                value = local(draw(shard.shape, shard.tied or name), shard, mesh, padding=0.0)
                self.register_parameter(name, nn.Parameter(value.to(dtype)))

    def backward(self, shards: dict[str, Shard], mesh: Mesh, step: int, sample: int) -> None:
        """Gives the gradients of one sample to the sinks, last parameters first, in all the ways there are."""
        for name, shard in reversed(shards.items()):
            weight = getattr(self, name)
            grad = local(
                draw(shard.shape, name, step, sample), shard, mesh, padding=7.0, partial=True
            )
            if name == "embedding":
                ids = torch.arange(len(grad)).repeat_interleave(2)
                weight.grad_sink.rows(
                    weight, ids, (grad / 2).repeat_interleave(2, 0).to(weight.dtype)
                )
            elif "norm" in name or name == "positions":
                (weight * grad.to(weight.dtype)).sum().backward()
            elif grad.dim() == 2:
                grad = grad.to(weight.dtype)
                weight.grad_sink.linear(
                    weight, torch.eye(grad.shape[1], dtype=grad.dtype), grad.t()
                )
            else:
                weight.grad_sink.dense(weight, grad.to(weight.dtype))


def build(
    flavour: str,
    layout: dict[str, int],
    bucket: int = 100,
    dtype: torch.dtype = torch.float64,
    tied: bool = True,
    overlap: bool = True,
    optimizer: str = "adam",
    **offload: Any,
) -> tuple[DataParallel, Stage, dict[str, Shard]]:
    mesh = mesh_of(**layout)
    shards = shards_of(mesh.pp.rank, mesh.pp.size, tied)
    stage = Stage(shards, mesh, dtype)
    parallel = ParallelConfig(ddp_bucket_size=bucket, overlap_grad_reduce=overlap, **offload)
    optim = replace(OPTIM, optimizer=optimizer)
    return DATA_PARALLEL[flavour]([stage], shards, mesh, optim, parallel), stage, shards


def accumulate(model: DataParallel, stage: Stage, shards: dict[str, Shard], step: int) -> None:
    """The backwards of one step: this rank's samples, one per micro-batch."""
    mine = range(model.mesh.data.rank, SAMPLES, model.mesh.data.size)
    for sample in mine:
        model.begin(0, last=sample == mine[-1])
        stage.backward(shards, model.mesh, step, sample)
    model.finish()


def play(model: DataParallel, stage: Stage, shards: dict[str, Shard], steps: range) -> list[float]:
    """Trains; the norms."""
    norms = []
    for step in steps:
        accumulate(model, stage, shards, step)
        norms.append(model.norm().item())
        model.step(RATES[step], clip_factor(norms[-1], OPTIM.clip_grad))
    return norms


def torchs_adamw(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(OPTIM.adam_beta1, OPTIM.adam_beta2), foreach=False)


def serial(
    steps: range,
    tied: bool = True,
    engine: Callable[[list[dict]], torch.optim.Optimizer] = torchs_adamw,
    kinds: tuple[str, ...] = ("exp_avg", "exp_avg_sq"),
) -> tuple[dict[str, Tensor], list[float]]:
    """The whole state by checkpoint name, and the norms, of one process with an optimizer over tensors."""
    shards = shards_of(0, 1, tied)
    weights = {
        name: draw(shard.shape, name)
        for name, shard in shards.items()
        if not (tied and name == "head")
    }
    groups = [
        {
            "params": [w for name, w in weights.items() if shards[name].decays is decays],
            "weight_decay": OPTIM.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    optimizer = engine(groups)
    norms = []
    for step in steps:
        for name, weight in weights.items():
            uses = (name, "head") if tied and name == "embedding" else (name,)
            weight.grad = sum(
                draw(tuple(weight.shape), use, step, sample)
                for use in uses
                for sample in range(SAMPLES)
            )
        norms.append(torch.cat([weight.grad.ravel() for weight in weights.values()]).norm().item())
        for weight in weights.values():
            weight.grad *= clip_factor(norms[-1], OPTIM.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        optimizer.step()
    whole = {f"param.{name}": weight for name, weight in weights.items()}
    for kind in kinds:
        whole |= {
            f"optim.{kind}.{name}": optimizer.state[weight][kind]
            for name, weight in weights.items()
        }
    return whole, norms


def worst(model: DataParallel, whole: dict[str, Tensor]) -> float:
    """The largest difference between what this rank holds and the whole, relative to each tensor's largest element."""
    errors = [
        (
            (held.tensor.double() - whole[name][held.box.slices]).abs().max()
            / whole[name].abs().max()
        ).item()
        for name, boxes in model.state().items()
        for held in boxes
        if name in whole
    ]
    return max(errors)
