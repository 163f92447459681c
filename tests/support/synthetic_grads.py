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
from megascratch.parallel.shard import Cut, Part, Shard, ShardSlice
from megascratch.training.step_numbers import Announcement, StepNumbers, sum_over_ranks
from tests.support.rank_pool import mesh_of

SAMPLES = 4
VOCABULARY = Shard((11, 6), (Cut("tp", 0, padded=16),), role="embedding", tied="embedding")
HEADS = (Cut("tp", 0, (Part(16, 8), Part(4, 2), Part(4, 2))),)

BLOCK = {
    "norm": Shard((6,), role="norm", grad_sum=("tp",), fill=1.0),
    "qkv": Shard((24, 6), HEADS),
    "qkv_bias": Shard((24,), HEADS, role="bias"),
    "out": Shard((6, 16), (Cut("tp", 1),)),
    "up": Shard((24, 6), (Cut("tp", 0),)),
    "bias": Shard((6,), role="bias"),
}

Layers = list[dict[str, Shard]]

LAYERS: Layers = [
    {"embedding": VOCABULARY, "positions": Shard((5, 6), role="positions")},
    *({f"{number}_{name}": shard for name, shard in BLOCK.items()} for number in range(2)),
    {"head": VOCABULARY},
]

DECAYING = ("embedding", "positions", "head", "matrix", "router")
OPTIM = OptimConfig(weight_decay=0.1, adam_beta2=0.99, clip_grad=20.0)
RATES = [0.01, 0.02, 0.005, 0.01, 0.03]


def shards_of(
    stage: int, stages: int, tied: bool = True, layers: Layers = LAYERS
) -> dict[str, Shard]:
    """The shards of a stage, in order of registration; those that all stages share come last."""
    per_stage = len(layers) // stages
    own = {}
    shared = {}
    for number, layer in enumerate(layers):
        for name, shard in layer.items():
            if shard is VOCABULARY:
                shard = replace(shard, tied="embedding" if tied else None)
            if "pp" in shard.axes:
                shared[name] = shard
            elif number // per_stage == stage:
                own[name] = shard
    return own | shared


def table_of(stages: int, tied: bool = True, layers: Layers = LAYERS) -> dict[str, Shard]:
    """The shards of all stages."""
    table: dict[str, Shard] = {}
    for stage in range(stages):
        table |= shards_of(stage, stages, tied, layers)
    return table


def draw(shape: tuple[int, ...], *key: object) -> Tensor:
    """Random numbers that are a function of the key."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return torch.randn(shape, dtype=torch.float64, generator=generator).bfloat16().double()


def share(shard: Shard, piece: ShardSlice, mesh: Mesh) -> float:
    """The part of a gradient that a rank sees: ranks that must be summed see different parts of it."""
    sizes, coords = mesh.layout.sizes(shard.view), mesh.position.coords(shard.view)
    seen = 1.0
    for axis in shard.grad_sum:
        seen *= one_of(coords[axis], sizes[axis])
    for cut in shard.cuts:
        copies = max(1, sizes[cut.axis] // units_at(shard, cut, piece.whole.start[cut.dim]))
        seen *= one_of(coords[cut.axis] % copies, copies)
    return seen


def one_of(number: int, ranks: int) -> float:
    """Different numbers for the ranks, whose sum is 1."""
    return (number + 1) / (ranks * (ranks + 1) / 2)


def units_at(shard: Shard, cut: Cut, index: int) -> int:
    """The units of the part in which the index of the cut's dim is."""
    end = 0
    for part in cut.parts:
        end += part.size
        if index < end:
            return part.units
    return shard.shape[cut.dim]


def local(whole: Tensor, shard: Shard, mesh: Mesh, padding: float, partial: bool = False) -> Tensor:
    """A rank's tensor of a whole, or its part of a whole gradient."""
    mine = torch.full(shard.local_shape(mesh.layout), padding, dtype=torch.float64)
    for piece in shard.pieces(mesh.position):
        part = share(shard, piece, mesh) if partial else 1.0
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

    def backward(
        self, shards: dict[str, Shard], mesh: Mesh, step: int, samples: dict[str, list[int]]
    ) -> None:
        """Gives the gradients of the samples, which are given by view, to the sinks, last parameters first, in all the
        ways there are."""
        for name, shard in reversed(shards.items()):
            weight = getattr(self, name)
            whole = torch.zeros(shard.shape, dtype=torch.float64)
            for sample in samples[shard.view]:
                whole += draw(shard.shape, name, step, sample)
            grad = local(whole, shard, mesh, padding=7.0, partial=True)
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
    layers: Layers = LAYERS,
    rates: dict[str, Any] | None = None,
    **offload: Any,
) -> tuple[DataParallel, Stage, dict[str, Shard]]:
    mesh = mesh_of(**layout)
    shards = shards_of(mesh.pp.rank, mesh.pp.size, tied, layers)
    stage = Stage(shards, mesh, dtype)
    parallel = ParallelConfig(ddp_bucket_size=bucket, overlap_grad_reduce=overlap, **offload)
    optim = replace(OPTIM, optimizer=optimizer, **(rates or {}))
    table = table_of(mesh.pp.size, tied, layers)
    return DATA_PARALLEL[flavour]([stage], table, mesh, optim, parallel), stage, shards


def samples_of(mesh: Mesh) -> list[dict[str, list[int]]]:
    """For each micro-batch, the samples of which this rank sees the gradients, by view: the ranks of each view's data
    axis deal them out."""
    micro_batches = [{"dense": [], "expert": []} for _ in range(SAMPLES // mesh.data.size)]
    for view in ("dense", "expert"):
        axis = mesh.data_of(view)
        for turn, sample in enumerate(range(axis.rank, SAMPLES, axis.size)):
            micro_batches[turn % len(micro_batches)][view].append(sample)
    return micro_batches


def accumulate(model: DataParallel, stage: Stage, shards: dict[str, Shard], step: int) -> None:
    """The backwards of one step, one per micro-batch."""
    micro_batches = samples_of(model.mesh)
    for number, samples in enumerate(micro_batches):
        model.begin(0, last=number == len(micro_batches) - 1)
        stage.backward(shards, model.mesh, step, samples)
    model.finish()


def numbers(model: DataParallel) -> StepNumbers:
    """The numbers of a step without a loss."""
    no_loss = torch.zeros(0, dtype=torch.float64)
    return sum_over_ranks(model.norm_parts(), no_loss, Announcement(), model.mesh.world)


def norm(model: DataParallel) -> float:
    """The global gradient norm."""
    return numbers(model).norm


def play(model: DataParallel, stage: Stage, shards: dict[str, Shard], steps: range) -> list[float]:
    """Trains; the norms."""
    norms = []
    for step in steps:
        accumulate(model, stage, shards, step)
        norms.append(norm(model))
        model.step(RATES[step], clip_factor(norms[-1], OPTIM.clip_grad))
    return norms


def torchs_adamw(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(OPTIM.adam_beta1, OPTIM.adam_beta2), foreach=False)


def serial(
    steps: range,
    tied: bool = True,
    engine: Callable[[list[dict]], torch.optim.Optimizer] = torchs_adamw,
    kinds: tuple[str, ...] = ("exp_avg", "exp_avg_sq"),
    layers: Layers = LAYERS,
) -> tuple[dict[str, Tensor], list[float]]:
    """The whole state by checkpoint name, and the norms, of one process with an optimizer over tensors."""
    shards = shards_of(0, 1, tied, layers)
    weights = {
        name: draw(shard.shape, name)
        for name, shard in shards.items()
        if not (tied and name == "head")
    }
    groups = [
        {
            "params": [
                w for name, w in weights.items() if (shards[name].role in DECAYING) is decays
            ],
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
