"""When reductions start, seen as the order of events."""

import math

import pytest
import torch
from torch import nn

from megascratch.config.settings import OptimConfig, ParallelConfig
from megascratch.data_parallel import DATA_PARALLEL
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.shard import Shard
from tests.support import synthetic_grads
from tests.support.rank_pool import mesh_of, on_ranks


def events(flavour, layout, overlap):
    """Gradients (g) and starts of reductions (R) of the second of two micro-batches; | is where `finish` begins."""
    model, stage, shards = synthetic_grads.build(flavour, layout, 10, overlap=overlap)
    seen, chunk = [], model.chunks[0]
    reduce = chunk.reduce
    chunk.reduce = lambda bucket: (seen.append("R"), reduce(bucket))[1]
    for slot in chunk.slots:
        slot.tell = lambda slot, tell=slot.tell: (seen.append("g"), tell and tell(slot))
    model.begin(0, last=False)
    stage.backward(shards, model.mesh, 0, {"dense": [0]})
    first = "".join(seen)
    seen.clear()
    model.begin(0, last=True)
    stage.backward(shards, model.mesh, 0, {"dense": [1]})
    seen.append("|")
    model.finish()
    return first, "".join(seen)


@pytest.mark.parametrize("flavour", ["ddp", "zero1"])
def test_each_bucket_starts_when_it_is_full_and_only_in_the_last_micro_batch(flavour):
    """Fifteen gradients; small ones share a bucket; the tied weight, which gets two of them, waits for finish."""
    for first, last in on_ranks(2, events, flavour, {"dp": 2}, True):
        assert first == "g" * 15
        assert last == "g" + "ggR" + 3 * "gR" + "ggR" + 4 * "gR" + "ggR" + "g|R"


def test_without_overlap_everything_starts_in_finish():
    for first, last in on_ranks(2, events, "ddp", {"dp": 2}, False):
        assert (
            set(first) == {"g"}
            and set(last.split("|")[0]) == {"g"}
            and set(last.split("|")[1]) == {"R"}
        )


def used_twice():
    model, stage, _ = synthetic_grads.build("ddp", {"dp": 2})
    model.begin(0, last=True)
    grad = torch.ones_like(stage.positions)
    stage.positions.grad_sink.dense(stage.positions, grad)
    with pytest.raises(RuntimeError, match="positions got a second gradient in one micro-batch"):
        stage.positions.grad_sink.dense(stage.positions, grad)


def test_an_undeclared_second_use_of_a_weight_is_an_error():
    on_ranks(2, used_twice)


def chunks(flavour):
    """Two chunks per rank with interleaved backwards; the second never sees its `b` in the second step."""
    mesh, dtype = mesh_of(dp=2), torch.float64
    models = [
        nn.ParameterDict(
            {f"{c}a": torch.zeros(3, 2, dtype=dtype), f"{c}b": torch.zeros(5, dtype=dtype)}
        )
        for c in "xy"
    ]
    shards = {
        name: Shard(tuple(p.shape)) for model in models for name, p in model.named_parameters()
    }
    model = DATA_PARALLEL[flavour](
        models, shards, mesh, OptimConfig(), ParallelConfig(ddp_bucket_size=1)
    )
    norms = []
    for step in range(2):
        for chunk, last in ((1, False), (0, False), (1, True), (0, True)):
            model.begin(chunk, last)
            for name, parameter in models[chunk].items():
                if not (step == 1 and name == "yb"):
                    (parameter * (mesh.data.rank + 1.0)).sum().backward()
        model.finish()
        norms.append(synthetic_grads.norm(model) ** 2)
    return norms


@pytest.mark.parametrize("flavour", ["ddp", "zero1"])
def test_chunks_accumulate_apart_and_an_unused_weight_has_no_old_gradient(flavour):
    for norms in on_ranks(2, chunks, flavour):  # (1 + 2) x 2 micro-batches = 6 per element
        assert norms == pytest.approx([36 * (6 + 5 + 6 + 5), 36 * (6 + 5 + 6)], rel=1e-12)


def gathers():
    """Weights on their way, one letter each: after a step, in the forward of each of three layers, after another step
    without a forward and a look at the state."""
    mesh = mesh_of(dp=2)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(3)]
    stage = nn.ModuleDict(dict(zip("abc", layers, strict=True)))
    shards = {name: Shard(tuple(p.shape)) for name, p in stage.named_parameters()}
    parallel = ParallelConfig(ddp_bucket_size=1)
    model = DATA_PARALLEL["zero1"]([stage], shards, mesh, OptimConfig(), parallel)
    model.overlap_param_gather(layers)
    seen = []

    def look(*args):
        buckets = reversed(model.chunks[0].buckets)
        seen.append(
            "".join(
                name
                for name, bucket in zip("abc", buckets, strict=True)
                if bucket.arriving is not None
            )
        )

    for layer in layers:
        layer.register_forward_pre_hook(look)
    model.step(0.1)
    look()
    x = torch.ones(1, 4)
    for layer in layers:
        x = layer(x)
    model.step(0.1)
    look()
    model.state()
    look()
    return seen


def test_gathered_weights_arrive_layer_by_layer_and_all_of_them_when_the_state_is_read():
    for seen in on_ranks(2, gathers):
        assert seen == ["abc", "bc", "c", "", "abc", ""]


def overflow(flavour, bad):
    model, stage, shards = synthetic_grads.build(flavour, {"tp": 2, "pp": 2, "dp": 2})
    before = [parameter.detach().clone() for parameter in stage.parameters()]
    coords, finite = model.mesh.position.coords("dense"), []
    for step in range(2):
        model.begin(0, last=False)
        stage.backward(shards, model.mesh, step, {"dense": [0]})
        if step == 0 and coords["tp"] == 1 and coords["pp"] == 1 and coords["dp"] == 1:
            stage.get_parameter("1_up").main_grad[3, 2] = bad
        model.begin(0, last=True)
        stage.backward(shards, model.mesh, step, {"dense": [1]})
        model.finish()
        finite.append(math.isfinite(synthetic_grads.norm(model)))
    return finite, all(map(torch.equal, before, stage.parameters()))


@pytest.mark.parametrize("flavour, bad", [("ddp", float("nan")), ("zero1", float("inf"))])
def test_an_overflow_on_one_rank_is_seen_by_all_and_leaves_nothing_behind(flavour, bad):
    for finite, untouched in on_ranks(8, overflow, flavour, bad):
        assert finite == [False, True] and untouched


BAD = {
    "no shard": ({}, True, "a has no shard"),
    "other shape": (
        {"a": Shard((3, 3))},
        True,
        r"a has shape \(3, 2\), but its shard says \(3, 3\)",
    ),
    "frozen": ({"a": Shard((3, 2))}, False, "all weights are frozen"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_parameter_that_does_not_fit_its_shard_is_refused(name):
    shards, trains, message = BAD[name]
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(3, 2), requires_grad=trains)})
    with pytest.raises(ValueError, match=message):
        DATA_PARALLEL["ddp"]([model], shards, Mesh.alone(), OptimConfig(), ParallelConfig())
