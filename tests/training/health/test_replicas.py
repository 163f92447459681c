"""Copies of the state are equal to the bit on every layout, and one that is not is named with its rank."""

import socket

import pytest
import torch

from megascratch.config.layout import Layout
from megascratch.training.health.replicas import ReplicasDiffer, check_replicas, digest
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import config_of, synthetic_batch, world_of
from tests.support.rank_pool import mesh_for, on_ranks

TP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
ZERO1 = {"use_distributed_optimizer": True}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_digest_sees_every_bit_and_every_place(dtype):
    tensor = torch.arange(300).to(dtype).view(20, 15)
    seen = {digest(tensor)}
    for place in (0, 7, 299):
        changed = tensor.clone()
        changed.view(-1).view(torch.uint8)[place * tensor.element_size()] ^= 1
        seen.add(digest(changed))
    swapped = tensor.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    seen |= {digest(swapped), digest(tensor[:, :14])}
    assert len(seen) == 6
    assert digest(tensor.t()) == digest(tensor.t().contiguous()) and digest(tensor[:0]) == 0


def corrupted(config, rank: int, tensor: str) -> str:
    """On a rank: two steps, a check, then rank `rank` changes a bit of a weight (or a moment), and another check."""
    mesh = mesh_for(Layout.of(config.parallel))
    trainer = Trainer(config, mesh)
    for step in range(2):
        count = config.training.global_batch_size // mesh.dp.size
        numbers = [
            range(m * mesh.dp.size + mesh.dp.rank, m * mesh.dp.size + mesh.dp.rank + 1)
            for m in range(count)
        ]
        trainer.train_step([synthetic_batch(config, n) for n in numbers], 1e-2, step)
    check_replicas(trainer, 2)
    for chunk in trainer.chunks if mesh.rank == rank else ():
        for own, parameter in chunk.named_parameters():
            if tensor == f"param.{trainer.shards[own].tied or own}":
                # of a query, key and value weight only the last two are shared
                place = -1 if "qkv" in tensor else 0
                parameter.data.view(-1)[place:][:1].view(torch.uint8)[3] ^= 1
    for held in trainer.held() if mesh.rank == rank else ():
        if held.name == tensor and tensor.startswith("optim."):
            held.tensor.view(-1)[:1].view(torch.uint8)[0] ^= 1
    try:
        check_replicas(trainer, 2)
    except ReplicasDiffer as error:
        return str(error)
    return ""


FC1 = "param.layers.1.mlp.fc1.weight"
MOMENT = "optim.exp_avg.layers.0.mlp.fc1.weight"
NORM = "param.layers.0.norm1.weight"
TIED = "param.embedding.word.weight"
QKV = "param.layers.0.attention.qkv.weight"
CASES = {  # layout, (rank, tensor that it changes), what is told of h, this host
    "dp3": (
        {"data_parallel_size": 3, "global_batch_size": 6},
        (1, FC1),
        f"{FC1}[0:128, 0:32]: h (rank 1) against h (ranks 0, 2)",
    ),
    "zero1 dp3": (
        {"data_parallel_size": 3, "global_batch_size": 6} | ZERO1,
        (2, FC1),
        f"{FC1}[0:128, 0:32]: h (rank 2) against h (ranks 0-1)",
    ),
    "moment": (
        {"data_parallel_size": 2},
        (1, MOMENT),
        f"{MOMENT}[0:128, 0:32]: h (rank 0) and h (rank 1) differ, and there is no majority",
    ),
    "tp2 dp2": (
        TP2 | {"data_parallel_size": 2},
        (3, NORM),
        f"{NORM}[0:32]: h (rank 3) against h (ranks 0-2)",
    ),
    "pp2 dp2, tied": (
        PP2 | {"data_parallel_size": 2},
        (2, TIED),
        f"{TIED}[0:61, 0:32]: h (rank 2) against h (ranks 0-1, 3)",
    ),
    "shared heads": (TP2 | {"num_query_groups": 1}, (0, QKV), "there is no majority"),
    "tp2 pp2 zero1": (
        TP2 | PP2 | {"data_parallel_size": 1} | ZERO1,
        (1, NORM),
        "there is no majority",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_copies_pass_and_one_that_is_not_is_named_on_every_rank(case):
    layout, (rank, tensor), told = CASES[case]
    config = config_of(**layout, fp64=False)
    said = on_ranks(world_of(config), corrupted, config, rank, tensor)
    assert len(set(said)) == 1 and told in said[0].replace(socket.gethostname(), "h"), said[0]
    assert (
        said[0].startswith("copies that must be equal differ after step 2")
        and len(said[0].splitlines()) == 2
    )


def test_in_bf16_masters_are_compared_too():
    config = config_of(data_parallel_size=2, fp64=False, bf16=True)
    said = on_ranks(2, corrupted, config, 0, MOMENT.replace("exp_avg", "master"))
    assert "optim.master.layers.0.mlp.fc1.weight" in said[1]
