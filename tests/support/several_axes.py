"""Weights that are cut over several axes, in both views: with told gradients, for every kind of `Shard`, and as a small
mixture of experts that runs forward and backward."""

from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from megascratch.checkpoint.write_plan import own_chunks
from megascratch.config.layout import Layout
from megascratch.config.settings import ParallelConfig
from megascratch.data_parallel import DATA_PARALLEL
from megascratch.parallel.collectives import all_gather_objects, gather_from, reduce_scatter_to
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.shard import Cut, Part, Shard
from megascratch.training.health import replicas
from megascratch.training.health.replicas import ReplicasDiffer, check_replicas
from tests.support import synthetic_grads
from tests.support.rank_pool import mesh_of

EXPERTS = {
    "norm": Shard((6,), role="norm", grad_sum=("tp",), fill=1.0),
    "router": Shard((4, 6), role="router"),
    "gate_up": Shard((4, 8, 6), (Cut("ep", 0), Cut("etp", 1, (Part(4, 4), Part(4, 4)))), "expert"),
    "down": Shard((4, 6, 8), (Cut("ep", 0), Cut("etp", 2)), "expert"),
    "bias": Shard((4, 6), (Cut("ep", 0),), "expert", "bias", grad_sum=("etp",)),
    "shared_units": Shard(
        (4, 10), (Cut("ep", 0), Cut("etp", 1, (Part(8, 8), Part(2, 1)))), "expert"
    ),
    "each_expert": Shard((5, 6), view="expert", grad_sum=("ep", "etp")),
    "dense": Shard((8, 6), (Cut("tp", 0),)),
}
OF_ALL_STAGES = {
    "crossed": Shard((8, 6), (Cut("tp", 0), Cut("pp", 1))),
    "third": Shard((4, 6), (Cut("ep", 0), Cut("etp", 1)), "expert", grad_sum=("pp",)),
    "gain": Shard((7,), role="norm", grad_sum=("pp", "tp")),
}
LAYERS = [
    {f"0_{name}": shard for name, shard in EXPERTS.items()},
    {f"1_{name}": shard for name, shard in EXPERTS.items()} | OF_ALL_STAGES,
]

LAYOUTS = {
    "one": {},
    "tp2 dp2": {"tp": 2, "dp": 2},
    "tp2 dp2 etp1": {"tp": 2, "dp": 2, "etp": 1},
    "dp4 ep2": {"dp": 4, "ep": 2},
    "dp4 ep2 etp2": {"dp": 4, "ep": 2, "etp": 2},
    "tp2 dp2 ep4 etp1": {"tp": 2, "dp": 2, "ep": 4, "etp": 1},
    "tp2 pp2 ep2 etp1": {"tp": 2, "pp": 2, "ep": 2, "etp": 1},
    "tp2 pp2 dp2 ep2": {"tp": 2, "pp": 2, "dp": 2, "ep": 2},
    "tp2 dp4 ep2": {"tp": 2, "dp": 4, "ep": 2},
}
STEPS = range(4)


def world_of(name: str) -> int:
    return Layout(**LAYOUTS[name]).world


def trained(flavour, layout, bucket=100):
    """The worst error of weights and moments after some steps, the worst of the norms, and the boxes of copy 0 and of
    those that this rank writes into a checkpoint."""
    model, stage, shards = synthetic_grads.build(flavour, layout, bucket, layers=LAYERS)
    whole, norms = synthetic_grads.serial(STEPS, layers=LAYERS)
    ours = synthetic_grads.play(model, stage, shards, STEPS)
    error_of_norm = max(abs(a / b - 1) for a, b in zip(ours, norms, strict=True))
    held = [item for several in model.state().values() for item in several]
    counts = [(item.name, item.box) for item in held if item.copy == 0]
    written = [(slot.name, slot.box) for slot in own_chunks(held)]
    return synthetic_grads.worst(model, whole), error_of_norm, ours, (counts, written)


def weights_are_those_of_one_process(flavour: str, layout: str, run: Callable) -> None:
    """The law: weights, moments and norms of all ranks, and each element once in the boxes of copy 0 and once in those
    that are written."""
    found = run(world_of(layout), trained, flavour, LAYOUTS[layout])
    for error, error_of_norm, norms, _ in found:
        assert error < 1e-12, f"weights or moments are off by {error:.2e}"
        assert error_of_norm < 1e-13, f"norms are off by {error_of_norm:.2e}"
        assert norms == found[0][2], "every rank sees the same norm"
    whole, _ = synthetic_grads.serial(range(1), layers=LAYERS)
    for kind in range(2):
        covered = {name: torch.zeros(value.shape, dtype=torch.int) for name, value in whole.items()}
        for _, _, _, boxes in found:
            for name, box in boxes[kind]:
                covered[name][box.slices] += 1
        for name, times in covered.items():
            assert (times == 1).all(), f"an element of {name} is not saved once"


# ---- copies that differ ----------------------------------------------------------------------------------------


def corrupted(flavour, layout, name, rank):
    """What the check says before and after one rank changes a bit of one weight."""
    model, stage, _ = synthetic_grads.build(flavour, layout, layers=LAYERS)
    settings = SimpleNamespace(use_distributed_optimizer=flavour == "zero1")
    run = SimpleNamespace(
        mesh=model.mesh,
        chunks=[stage],
        shards=model.shards,
        data_parallel=model,
        held=lambda: [held for several in model.state().values() for held in several],
        config=SimpleNamespace(parallel=settings),
    )
    gathered = []

    def gather(item, axis):
        gathered.append(axis.name)
        return all_gather_objects(item, axis)

    with patch.object(replicas, "all_gather_objects", gather):
        check_replicas(run, 1)
    assert not {"data", "edp"} & set(gathered), "equal copies on data ranks compare one number"
    if model.mesh.rank == rank:
        getattr(stage, name).data.view(-1)[:1].view(torch.uint8)[3] ^= 1
    try:
        check_replicas(run, 1)
    except ReplicasDiffer as error:
        return str(error).splitlines()[1:]
    return []


# ---- a mixture of experts ---------------------------------------------------------------------------------------

EXPERT_COUNT, WIDTH, INNER, TOKENS = 4, 6, 8, 16
MIXTURE = {
    "router": Shard((EXPERT_COUNT, WIDTH), role="router"),
    "up": Shard((EXPERT_COUNT, INNER, WIDTH), (Cut("ep", 0), Cut("etp", 1)), "expert"),
    "down": Shard((EXPERT_COUNT, WIDTH, INNER), (Cut("ep", 0), Cut("etp", 2)), "expert"),
    "shift": Shard((EXPERT_COUNT, WIDTH), (Cut("ep", 0),), "expert", "bias", grad_sum=("etp",)),
}


class Mixture(nn.Module):
    """Each token is the sum of all experts, weighted by the router. The ranks of `ep` and `etp` share their tokens;
    each computes its part of its experts for all of them."""

    def __init__(self, mesh: Mesh):
        super().__init__()
        self.mesh = mesh
        for name, shard in MIXTURE.items():
            value = synthetic_grads.local(synthetic_grads.draw(shard.shape, name), shard, mesh, 0.0)
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:  # [n, h] -> [n, h]
        chances = (x @ self.router.t()).softmax(-1)
        both = torch.cat((x, chances), -1)  # [n, h + experts]
        for axis in (self.mesh.etp, self.mesh.ep):
            both = gather_from(both, axis)
        x, chances = both.split((WIDTH, EXPERT_COUNT), -1)
        experts = len(self.up)
        mine = chances[:, self.mesh.ep.rank * experts :][:, :experts]
        inner = torch.einsum("nh,eih->nei", x, self.up).tanh()
        out = torch.einsum("nei,ehi->neh", inner, self.down)
        shift = self.shift / self.mesh.etp.size  # each of the ranks of an expert adds a part
        y = torch.einsum("neh,ne->nh", out + shift, mine)
        for axis in (self.mesh.ep, self.mesh.etp):
            y = reduce_scatter_to(y, axis)
        return y


def of_mixture(flavour, layout):
    """This rank's outputs of the first forward, the norms, and the errors of its boxes against one process."""
    mesh = mesh_of(**layout)
    module = Mixture(mesh)
    parallel = ParallelConfig(ddp_bucket_size=40)
    model = DATA_PARALLEL[flavour]([module], MIXTURE, mesh, synthetic_grads.OPTIM, parallel)
    outputs, norms = [], []
    for step in STEPS:
        tokens = synthetic_grads.draw((TOKENS, WIDTH), "tokens", step)
        mine = tokens.chunk(mesh.data.size)[mesh.data.rank]
        model.begin(0, last=True)
        outputs.append(module(mine))
        outputs[-1].square().sum().backward()
        model.finish()
        norms.append(synthetic_grads.norm(model))
        model.step(0.01, synthetic_grads.clip_factor(norms[-1], 20.0))
    weights, expected_outputs, expected_norms = one_mixture()
    mine = [out.chunk(mesh.data.size)[mesh.data.rank] for out in expected_outputs]
    errors = [
        max((a - b).abs().max().item() for a, b in zip(outputs, mine, strict=True)),
        max(abs(a / b - 1) for a, b in zip(norms, expected_norms, strict=True)),
    ]
    return [*errors, synthetic_grads.worst(model, weights)]


def one_mixture():
    """Weights, outputs and norms of one process: plain torch, one expert at a time."""
    weights = {name: synthetic_grads.draw(shard.shape, name) for name, shard in MIXTURE.items()}
    for weight in weights.values():
        weight.requires_grad_()
    decay = {"weight_decay": synthetic_grads.OPTIM.weight_decay}
    groups = [
        {"params": [weights[name] for name in ("router", "up", "down")], **decay},
        {"params": [weights["shift"]], "weight_decay": 0.0},
    ]
    betas = synthetic_grads.OPTIM.adam_beta1, synthetic_grads.OPTIM.adam_beta2
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=betas, foreach=False)
    outputs, norms = [], []
    for step in STEPS:
        x = synthetic_grads.draw((TOKENS, WIDTH), "tokens", step)
        chances = (x @ weights["router"].t()).softmax(-1)
        y = torch.zeros_like(x)
        for expert in range(EXPERT_COUNT):
            out = (x @ weights["up"][expert].t()).tanh() @ weights["down"][expert].t()
            y = y + chances[:, expert, None] * (out + weights["shift"][expert])
        adamw.zero_grad()
        y.square().sum().backward()
        outputs.append(y.detach())
        norms.append(torch.cat([weight.grad.ravel() for weight in weights.values()]).norm().item())
        for weight in weights.values():
            weight.grad *= synthetic_grads.clip_factor(norms[-1], 20.0)
        adamw.step()
    return {f"param.{name}": weight.detach() for name, weight in weights.items()}, outputs, norms
