"""Both flavours, on every layout, against one process with torch's optimizer."""

from itertools import product

import pytest
import torch

from megascratch.parallel.collectives import all_gather
from tests.support import synthetic_grads
from tests.support.rank_pool import on_ranks

LAYOUTS = {
    "one": {},
    "dp2": {"dp": 2},
    "dp4": {"dp": 4},
    "tp2": {"tp": 2},
    "tp4": {"tp": 4},
    "pp2": {"pp": 2},
    "pp4": {"pp": 4},
    "tp2 dp2": {"tp": 2, "dp": 2},
    "tp4 dp2": {"tp": 4, "dp": 2},
    "pp2 dp2": {"pp": 2, "dp": 2},
    "tp2 pp2 dp2": {"tp": 2, "pp": 2, "dp": 2},
}
STEPS = range(5)


def ranks(layout):
    return torch.Size(layout.values()).numel()


def first_gradients(flavour, layout, bucket):
    model, stage, shards = synthetic_grads.build(flavour, layout, bucket)
    whole, _ = synthetic_grads.serial(range(1))
    synthetic_grads.accumulate(model, stage, shards, 0)
    model.step(
        lr=0.0,
        factor=synthetic_grads.clip_factor(
            synthetic_grads.norm(model), synthetic_grads.OPTIM.clip_grad
        ),
    )
    return synthetic_grads.worst(
        model, {name: value for name, value in whole.items() if "exp_avg" in name}
    )


def trained(flavour, layout, bucket, dtype, overlap=True, tied=True):
    model, stage, shards = synthetic_grads.build(flavour, layout, bucket, dtype, tied, overlap)
    whole, norms = synthetic_grads.serial(STEPS, tied)
    ours = synthetic_grads.play(model, stage, shards, STEPS)
    replicas_differ = max(
        (p.detach().double() - other).abs().max().item()
        for p, other in zip(stage.parameters(), of_first_replica(model, stage), strict=True)
    )
    error_of_norm = max(abs(a / b - 1) for a, b in zip(ours, norms, strict=True))
    return synthetic_grads.worst(model, whole), error_of_norm, replicas_differ, ours


def of_first_replica(model, stage):
    """The parameters of data-parallel rank 0."""
    axis = model.mesh.data
    for parameter in stage.parameters():
        value = parameter.detach().double().clone()
        if axis.size > 1:
            value = all_gather(value.view(1, *value.shape), axis)[0]
        yield value


@pytest.mark.parametrize(
    "flavour, layout", list(product(["ddp", "zero1"], ["dp2", "tp4", "pp2 dp2", "tp2 dp2"]))
)
def test_gradients_are_the_sums_of_one_process(flavour, layout):
    """Seen through the first moment: after one step it is 0.1 x the gradient."""
    for error in on_ranks(ranks(LAYOUTS[layout]), first_gradients, flavour, LAYOUTS[layout], 100):
        assert error < 1e-12


@pytest.mark.parametrize("flavour, layout", list(product(["ddp", "zero1"], LAYOUTS)))
def test_weights_moments_and_norms_after_five_steps_are_those_of_one_process(flavour, layout):
    found = on_ranks(ranks(LAYOUTS[layout]), trained, flavour, LAYOUTS[layout], 100, torch.float64)
    for error, error_of_norm, replicas_differ, norms in found:
        assert error < 1e-12 and error_of_norm < 1e-13 and replicas_differ == 0.0
        assert norms == found[0][3], "every rank sees the same norm"


@pytest.mark.parametrize("flavour, bucket", list(product(["ddp", "zero1"], [1, 10, 333, 10**9])))
def test_the_size_of_buckets_is_of_no_account(flavour, bucket):
    layout = LAYOUTS["pp2 dp2"]
    for overlap in (True, False):
        for error, error_of_norm, *_ in on_ranks(
            4, trained, flavour, layout, bucket, torch.float64, overlap
        ):
            assert error < 1e-12 and error_of_norm < 1e-13


@pytest.mark.parametrize("flavour", ["ddp", "zero1"])
def test_single_precision_stays_within_its_digits(flavour):
    found = on_ranks(4, trained, flavour, {"tp": 2, "dp": 2}, 100, torch.float32)
    for error, error_of_norm, replicas_differ, _ in found:
        assert error < 1e-5 and error_of_norm < 1e-6 and replicas_differ == 0.0


@pytest.mark.parametrize("flavour, tp", list(product(["ddp", "zero1"], [1, 2])))
def test_the_pipeline_cut_moves_no_bit_of_norm(flavour, tp):
    """With untied ends: a tied pair's two uses are added up in another order when they sit on two stages."""
    norms = {}
    for pp in (1, 2, 4):
        layout = {"tp": tp, "pp": pp}
        norms[pp] = on_ranks(tp * pp, trained, flavour, layout, 100, torch.float32, True, False)[0][
            3
        ]
    assert norms[1] == norms[2] == norms[4]
