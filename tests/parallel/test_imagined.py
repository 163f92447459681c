"""One rank of a world that does not exist asks of it what a real rank asks of the others."""

from typing import Any

import pytest
import torch

from megascratch.config.layout import Layout
from megascratch.dry_run.steps import START, UPDATE
from megascratch.parallel.collectives import all_gather, all_reduce, reduce_scatter
from megascratch.parallel.imagined import imagined_mesh
from megascratch.parallel.traffic import TrafficLog
from tests.support.layout_runs import config_of, world_of
from tests.support.pairwise_cover import DOCUMENTS, LLAMA
from tests.support.rank_pool import mesh_for, on_ranks
from tests.support.traffic import imagined_traffic, traffic_on_rank

TP, PP, DP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size"
ZERO1 = {"use_distributed_optimizer": True}
SMALL = {"global_batch_size": 4, "num_layers": 2}
RUNS: dict[str, dict[str, Any]] = {
    "tp with sequence parallelism, llama": {**LLAMA, TP: 2, "sequence_parallel": True},
    "ddp without overlap": {DP: 2, "overlap_grad_reduce": False},
    "interleaved, tied": {
        "num_layers": 4,
        PP: 2,
        "pipeline_schedule": "interleaved",
        "num_virtual_stages_per_pipeline_rank": 2,
    },
    "tp x pp x zero1, documents": {
        **ZERO1,
        **DOCUMENTS,
        TP: 2,
        PP: 2,
        DP: 2,
        "sequence_parallel": True,
        "recompute_granularity": "full",
        "fp64": False,
    },
}
MORE_RUNS: dict[str, dict[str, Any]] = {
    "tp": {TP: 2},
    "ddp": {DP: 2},
    "zero1 without overlap": {**ZERO1, DP: 2, "overlap_param_gather": False},
    "1f1b": {PP: 2, "untie_embeddings_and_output_weights": True},
    "zb_v": {PP: 2, "num_layers": 4, "pipeline_schedule": "zb_v"},
    "more tensor ranks than key/value heads": {**LLAMA, TP: 4, "num_query_groups": 2},
}


@pytest.mark.parametrize(
    "settings",
    [
        *(pytest.param(settings, id=name) for name, settings in RUNS.items()),
        *(
            pytest.param(settings, id=name, marks=pytest.mark.deep)
            for name, settings in MORE_RUNS.items()
        ),
    ],
)
def test_an_imagined_rank_asks_for_what_a_real_one_does(settings):
    """Every operation with its axis, bytes, type and action, in order, on every rank."""
    config = config_of(**{**SMALL, **settings})
    real = on_ranks(world_of(config), traffic_on_rank, config)
    for rank, expected in enumerate(real):
        assert imagined_traffic(config, rank) == expected, rank


@pytest.mark.parametrize(
    "name", ["tp with sequence parallelism, llama", "tp x pp x zero1, documents"]
)
def test_nccl_is_asked_for_the_same_as_gloo(name):
    """In every action of the pipeline; over all ranks NCCL sums at once, gloo along one line after the other."""
    config = config_of(**{**SMALL, **RUNS[name]})
    last = world_of(config) - 1

    def in_actions(gloo: bool) -> list:
        traffic = imagined_traffic(config, last, gloo)
        return [what for what in traffic if what.during not in ("", START, UPDATE)]

    assert in_actions(False) == in_actions(True) != []


@pytest.mark.parametrize("schedule", ["gpipe", "zb_h1", "zb_h2", "zb_v", "dualpipe_v"])
def test_what_a_rank_sends_is_what_its_neighbour_receives(schedule):
    """Message by message in the order of each pair of ranks, although each rank is imagined alone."""
    config = config_of(**SMALL | {PP: 3, "num_layers": 6, "pipeline_schedule": schedule})
    sent: dict[tuple[int, int | None], list] = {}
    received: dict[tuple[int | None, int], list] = {}
    for rank in range(3):
        for what in imagined_traffic(config, rank):
            message = what.nbytes, what.dtype
            if what.operation == "send":
                sent.setdefault((rank, what.peer), []).append(message)
            elif what.operation == "receive":
                received.setdefault((what.peer, rank), []).append(message)
    assert sent == received and sent


def axes_on_rank(layout: Layout) -> list[tuple]:
    """On a rank: every axis of its mesh, and the ends of its links."""
    return axes_of(mesh_for(layout))


def axes_of(mesh) -> list[tuple]:
    names = ("tp", "pp", "dp", "cp", "data", "shard", "replica", "ep", "etp", "edp")
    axes = [getattr(mesh, name) for name in (*names, "embedding", "world")]
    found = [(axis.name, axis.size, axis.rank, axis.ranks) for axis in axes]
    if mesh.links is not None:
        for name, link in vars(mesh.links).items():
            found.append((name, 2, link.source, (link.source, link.target)))
    return found


@pytest.mark.parametrize("sizes", [{"tp": 2, "pp": 2, "dp": 2}, {"dp": 4, "cp": 2, "ep": 2}])
def test_an_imagined_mesh_has_the_axes_of_a_real_one(sizes):
    layout = Layout(**sizes)
    for rank, expected in enumerate(on_ranks(layout.world, axes_on_rank, layout)):
        assert axes_of(imagined_mesh(layout, rank, True, TrafficLog())) == expected


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match=r"rank \(8\) must be from 0 to 7"):
        imagined_mesh(Layout(tp=8), 8, False, TrafficLog())


def test_bytes_on_the_wire_are_those_of_rings():
    """On 4 ranks a rank sends 3/4 of a gathered tensor, and 6/4 of one that is summed."""
    log = TrafficLog()
    mesh = imagined_mesh(Layout(tp=4, pp=2), 0, False, log)
    x = torch.empty(4, 100, dtype=torch.float32, device="meta")  # 1600 bytes
    all_reduce(x, mesh.tp)
    all_gather(x[:1], mesh.tp)
    reduce_scatter(x, mesh.tp)
    assert [(c.operation, c.nbytes, c.sent) for c in log.communications] == [
        ("all_reduce", 1600, 2400.0),
        ("all_gather", 1600, 1200.0),
        ("reduce_scatter", 1600, 1200.0),
    ]
