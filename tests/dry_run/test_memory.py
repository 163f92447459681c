"""The memory of a dry run: what a real step needs, told apart by owner and by action."""

from functools import partial

import pytest
import torch
from torch import Tensor

from megascratch.config.layers import MLPSpec
from megascratch.dry_run.memory import PARTS, MemoryTracker
from megascratch.dry_run.steps import START
from megascratch.layers import mlp
from megascratch.layers.kernels.attention import Scores, attend
from megascratch.layers.kernels.cross_entropy import rows_of
from megascratch.layers.kernels.dropout import Elements, Site, drop
from megascratch.layers.kernels.norms import rms_norm
from megascratch.layers.mlp import ACTIVATIONS, MLP, Activation
from megascratch.layers.sublayer import SublayerSite
from megascratch.layers.visible import Visible
from megascratch.parallel.axis import Axis
from tests.support.contexts import plain_context
from tests.support.peaks import (
    CASES,
    dry_run,
    large_config,
    the_dry_run_needs_what_a_rank_needs,
    the_optimizer_is_divided_among_data_ranks,
)
from tests.support.rank_pool import on_ranks

S, B, H, W = 8, 2, 16, 24


@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_a_rank_is_that_of_torchs_allocator_in_a_real_step(case):
    the_dry_run_needs_what_a_rank_needs(case, on_ranks)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)


def test_an_mlp_keeps_the_inputs_of_its_parts():
    """x, gate and up, and their product: [s, b, h], [s, b, 2w] and [s, b, w]."""
    site = SublayerSite(0, H, 0.1, 0.1, 0, Axis.alone("tp"), sequence_parallel=False)
    with torch.device("meta"):
        layer = MLP(MLPSpec(W, "swiglu", bias=False), site)
    with MemoryTracker("cpu") as tracker, tracker.watching([layer]):
        tracker.tag(layer.parameters(), "weights")
        x = meta(S, B, H)
        tracker.at("F0")
        edge = layer(x, plain_context(S, torch.arange(B))).grad_fn
        tracker.at("B0")
        del edge
    f0 = tracker.report().timeline[1]
    assert f0.at_end["activations"] == 4 * S * B * (2 * W + W)
    assert (
        f0.peak - f0.at_end["activations"] - f0.at_end["weights"] - f0.at_end["other"]
        == 4 * S * B * H
    )
    assert f0.at_end["other"] == 4 * S * B * H and f0.at_end["weights"] == 4 * 3 * H * W
    assert tracker.report().timeline[2].at_end["activations"] == 0


def test_each_byte_has_one_owner_and_each_action_its_own_peak():
    """Drawn by hand: what is live at each point is the sum of what was made and not freed."""
    with MemoryTracker("cpu") as tracker:
        weight = meta(100)  # 400 bytes
        tracker.tag([weight], "weights")
        batch = meta(3)
        tracker.at("F0")
        kept = meta(50)
        passing = meta(25)
        view = passing[1:]
        del passing, view
        tracker.at("SF0")
        sent = meta(10)
        tracker.tag_messages(sent, weight)  # a weight that is sent stays a weight
        tracker.at("B0")
        passing = meta(5)
        del kept, passing
        more = meta(70)
        tracker.at("end")
        del sent, more, batch
    found = tracker.report()
    live = [(moment.action, moment.peak, sum(moment.at_end.values())) for moment in found.timeline]
    assert live == [
        (START, 412, 412),
        ("F0", 412 + 200 + 100, 412 + 200),
        ("SF0", 612 + 40, 612 + 40),
        ("B0", 412 + 40 + 280, 412 + 40 + 280),
        ("end", 732, 400),
    ]
    parts = {**dict.fromkeys(PARTS, 0), "weights": 400, "other": 12}
    assert found.timeline[1].at_peak == {**parts, "activations": 200, "temporaries": 100}
    assert (found.peak, found.peak_action) == (732, "B0")
    assert found.at_peak == {**parts, "messages": 40, "activations": 280}


def test_memory_of_cuda_is_in_blocks_of_512_bytes():
    with MemoryTracker("cuda") as tracker:
        held = [meta(1), meta(128), meta(129), meta(0)]
    assert tracker.report().peak == 512 * (1 + 1 + 2) and len(held) == 4


class Greedy(torch.autograd.Function):
    """Keeps a copy that nobody needs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone())
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def test_a_layer_that_keeps_more_is_found(monkeypatch):
    """Under its name, with every byte: in two layers, for the one micro-batch that is alive."""
    config = large_config("llama bf16, documents")
    before = dry_run(config)
    swiglu = ACTIVATIONS["swiglu"].function
    greedy = Activation(lambda x: swiglu(Greedy.apply(x)), inputs=2)
    monkeypatch.setitem(mlp.ACTIVATIONS, "swiglu", greedy)
    after = dry_run(config)
    more = 2 * 128 * 2 * 2 * 48 * 2  # layers, tokens, samples, gate and up, width, bytes
    at = [moment.action for moment in before.timeline].index("F0")
    grown = after.timeline[at].at_end["activations"] - before.timeline[at].at_end["activations"]
    assert grown == more
    assert after.activations["mlp"] - before.activations["mlp"] == more


def kept_by(kind: str, make) -> int:
    """Bytes that stay alive of what `make()` makes until its result is dropped, the result included."""
    with MemoryTracker(kind) as tracker:
        inputs, operation = make()
        tracker.at("F0")
        result = operation(*inputs)
        tracker.at("B0")
        del result
    return tracker.report().timeline[1].at_end["activations"]


def of_attention(dtype: torch.dtype):
    q, k, v = (meta(2, 4, 512, 64, dtype=dtype) for _ in range(3))
    places = torch.arange(512, device="meta")
    visible = Visible(places, places, None, in_order=True)
    return (q, k, v), partial(attend, visible=visible, scores=Scores(64**-0.5))


def of_dropout():
    def dropped(x: Tensor, samples: Tensor, rows: Tensor) -> Tensor:
        return drop(x, samples, Elements(rows, None, 1024), Site(1, 2, 0.1), 1)

    return (meta(64, 2, 1024), meta(2, dtype=torch.int64), meta(64, dtype=torch.int64)), dropped


def of_rms_norm():
    norm = partial(rms_norm, epsilon=1e-5)
    return (meta(64, 2, 1024, dtype=torch.bfloat16), meta(1024, dtype=torch.bfloat16)), norm


def of_loss():
    def kept(logits: Tensor, labels: Tensor) -> list[Tensor | None]:
        rows = rows_of(logits)(logits, labels, 0, 4096, 1)
        return [*rows.sums(rows.peak()), *rows.kept()]

    return (meta(256, 4096, dtype=torch.bfloat16).detach(), meta(256, dtype=torch.int64)), kept


HEADS = 2 * 4 * 512  # samples, heads, tokens
SEEDS = 2 * 512  # of the dropout that torch's kernels could do, a number and an offset
KEPT = {
    "attention, cpu": ("cpu", partial(of_attention, torch.float32), HEADS * (64 * 4 + 4)),
    "attention, cuda": (
        "cuda",
        partial(of_attention, torch.bfloat16),
        HEADS * (64 * 2 + 4) + SEEDS,
    ),
    "attention in fp32, cuda": (
        "cuda",
        partial(of_attention, torch.float32),
        HEADS * (64 * 4 + 4) + SEEDS,
    ),
    "dropout without a mask, cuda": ("cuda", of_dropout, 64 * 2 * 1024 * 4),
    "rms norm in one kernel, cuda": ("cuda", of_rms_norm, 64 * 2 * 1024 * 2 + 64 * 2 * 4),
    # in fp32 three numbers of each row: its largest, its sum, and its logit of the label; the logits stay in bf16
    "loss, cuda": ("cuda", of_loss, 256 * 4 * 3),
    "loss, cpu": ("cpu", of_loss, 256 * 4 * (4096 + 2)),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_kernel_keeps_on_meta_what_it_keeps_on_the_target(name):
    """Counted by hand; on CUDA in multiples of 512 bytes."""
    kind, make, expected = KEPT[name]
    assert kept_by(kind, make) == expected


def test_the_optimizer_is_divided_among_data_ranks_and_the_rest_is_not():
    the_optimizer_is_divided_among_data_ranks()


def test_an_offloaded_optimizer_is_in_host_memory():
    settings = {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 1.0}
    config = large_config("llama bf16, documents", **settings)
    on_cpu = dry_run(config)
    weights = on_cpu.timeline[-1].at_end["weights"] // 2
    # masters, gradients and moments in fp32, and the new weights in bf16
    optimizer = weights * (4 + 4 + 8 + 2)
    assert (on_cpu.host, on_cpu.timeline[-1].at_end["optimizer"]) == (0, optimizer)
    on_cuda = dry_run(config, kind="cuda")
    assert (on_cuda.host, on_cuda.timeline[-1].at_end["optimizer"]) == (optimizer, 0)
