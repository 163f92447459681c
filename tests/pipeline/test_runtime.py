"""What is moved in time or over ranks gives the same bits: every schedule equals the serial run of one process."""

import gc
import os
import weakref
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megascratch.config.layout import Layout
from megascratch.parallel.groups import Timeouts
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.pending import CommunicationError
from megascratch.pipeline.passes import Orders, add_transfers, check, compile_order
from megascratch.pipeline.runtime import TensorSpec, connect, evaluate, run
from megascratch.pipeline.schedule import Placement, zb_h1
from megascratch.pipeline.stage import Stage
from tests.support.rank_pool import RankFailed, group_maker, mesh_of, on_ranks
from tests.support.schedules import parse

ROWS, WIDTH, LAYERS = 3, 4, 7
SPEC = TensorSpec((ROWS, WIDTH), torch.float64, torch.device("cpu"))
LOSS_GRAD = 0.125


class Sink:
    """Adds gradients up at once, and remembers what came in which order."""

    def __init__(self) -> None:
        self.arrived: list[str] = []

    def linear(self, weight: nn.Parameter, x2d: Tensor, grad2d: Tensor) -> None:
        self.arrived.append("linear")
        self._add(weight, grad2d.t() @ x2d)

    def rows(self, weight: nn.Parameter, ids: Tensor, grad2d: Tensor) -> None:
        self._add(weight, torch.zeros_like(weight).index_add_(0, ids, grad2d))

    def dense(self, weight: nn.Parameter, grad: Tensor) -> None:
        self.arrived.append("dense")
        self._add(weight, grad)

    @staticmethod
    def _add(weight: nn.Parameter, grad: Tensor) -> None:
        weight.grad = grad if weight.grad is None else weight.grad + grad


class _SunkLinear(torch.autograd.Function):
    """x W^T + b whose weight gradients go to the sinks."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: nn.Parameter, bias: nn.Parameter) -> Tensor:
        ctx.weight, ctx.bias = weight, bias
        ctx.save_for_backward(x)
        return x @ weight.t() + bias

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.weight.grad_sink.linear(ctx.weight, ctx.saved_tensors[0], grad)
        ctx.bias.grad_sink.dense(ctx.bias, grad.sum(0))
        return grad @ ctx.weight, None, None


class Chain(nn.Module):
    """Layers `start` to `stop` of a toy chain; the first reads the batch, the last returns a sum of losses."""

    def __init__(self, start: int, stop: int, last: bool, sunk: bool = False):
        super().__init__()
        self.last, self.sunk = last, sunk
        for i in range(start, stop):
            layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
            for name, parameter in layer.named_parameters():
                generator = torch.Generator().manual_seed(1000 + 2 * i + (name == "bias"))
                parameter.data = torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64
                )
            self.add_module(str(i), layer)

    def forward(self, x: Tensor | None, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_() if x is None else x
        for layer in self.children():
            x = torch.tanh(
                _SunkLinear.apply(x, layer.weight, layer.bias) if self.sunk else layer(x)
            )
        return (x - batch.flip(0)).square().sum() if self.last else x


def batches_of(microbatches: int) -> list[Tensor]:
    return list(
        torch.randn(
            microbatches,
            ROWS,
            WIDTH,
            generator=torch.Generator().manual_seed(5),
            dtype=torch.float64,
        )
    )


def cut(virtual: int, count: int, uneven: bool) -> tuple[int, int]:
    """Layers of a virtual stage; uneven: all that one stage can spare lie on the first, the last may hold none."""
    if not uneven:
        return virtual * LAYERS // count, (virtual + 1) * LAYERS // count
    bounds = [0, *range(LAYERS - count + 2, LAYERS + 1), LAYERS]
    return bounds[virtual], bounds[virtual + 1]


def stages_of(
    rank: int, ranks: int, chunks: int, uneven: bool = False, sunk: bool = False
) -> list[Stage]:
    stages, count = [], ranks * chunks
    for chunk in range(chunks):
        v = Placement(ranks, chunks).virtual_stage(rank, chunk)
        stages.append(
            Stage(Chain(*cut(v, count, uneven), last=v == count - 1, sunk=sunk), v, count)
        )
    for stage in stages:
        for parameter in stage.module.parameters() if sunk else ():
            parameter.grad_sink = Sink()
    return stages


def grads_of(stages: list[Stage]) -> dict[str, Tensor]:
    return {
        name: p.grad
        for stage in stages
        for name, p in stage.module.named_parameters()
        if p.grad is not None
    }


def play_orders(
    orders: Orders, chunks: int, uneven: bool, sunk: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """On a rank: two steps of its order (the second on what the first left behind)."""
    ranks = len(orders)
    mesh = mesh_of(pp=ranks)
    stages = stages_of(mesh.pp.rank, ranks, chunks, uneven, sunk)
    batches = batches_of(1 + max(a.microbatch for a in orders[0]))
    for step in range(2):
        for stage in stages:
            stage.module.zero_grad()
        losses = run(orders[mesh.pp.rank], stages, mesh.links, batches, SPEC, LOSS_GRAD, step=step)
    return losses, grads_of(stages)


def serial(microbatches: int, sunk: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    stage = stages_of(0, 1, 1, sunk=sunk)[0]
    losses = []
    for batch in batches_of(microbatches):
        loss = stage.module(None, batch)
        (loss * LOSS_GRAD).backward()
        losses.append(loss.detach())
    return losses, grads_of([stage])


def assert_equals_serial(
    orders: Orders, chunks: int = 1, uneven: bool = False, sunk: bool = False
) -> None:
    losses, grads = serial(1 + max(a.microbatch for a in orders[0]), sunk)
    answers = on_ranks(len(orders), play_orders, orders, chunks, uneven, sunk)
    assert [rank for rank, (found, _) in enumerate(answers) if found] == [len(orders) - 1]
    assert torch.equal(torch.stack(answers[-1][0]), torch.stack(losses))
    found = {name: grad for _, part in answers for name, grad in part.items()}
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        assert torch.equal(found[name], grad), name


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize(
    ("schedule", "ranks", "microbatches", "chunks", "group"),
    [
        ("1f1b", 1, 3, 1, None),
        ("interleaved", 1, 3, 2, None),
        ("gpipe", 2, 5, 1, None),
        ("1f1b", 2, 5, 1, None),
        ("1f1b", 2, 1, 1, None),
        ("interleaved", 2, 4, 2, None),
        ("interleaved", 2, 5, 3, 3),
        ("gpipe", 2, 3, 2, None),
        ("gpipe", 4, 6, 1, None),
        ("1f1b", 4, 6, 1, None),
        ("1f1b", 4, 2, 1, None),
    ],
)
def test_every_schedule_gives_the_bits_of_the_serial_run(
    schedule, ranks, microbatches, chunks, group, uneven
):
    assert_equals_serial(
        compile_order(schedule, ranks, microbatches, chunks, group), chunks, uneven
    )


# ---- backward in two halves ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 3), (2, 5), (4, 6)])
def test_a_backward_in_two_halves_gives_the_bits_of_the_serial_run(ranks, microbatches):
    orders = add_transfers([zb_h1(rank, ranks, microbatches) for rank in range(ranks)])
    check(orders)
    assert_equals_serial(orders, sunk=True)


def test_sinks_and_plain_gradients_agree():
    """The toy layer with sinks is the layer of torch, so the laws above speak about the same chain."""
    for (_, plain), (_, sunk) in zip(
        serial(2)[1].items(), serial(2, sunk=True)[1].items(), strict=True
    ):
        assert torch.allclose(plain, sunk, rtol=1e-12)


def test_input_gradients_come_first_and_products_wait_for_their_turn():
    stages = stages_of(0, 1, 1, sunk=True)
    module = stages[0].module
    sink = Sink()
    for parameter in module.parameters():
        parameter.grad_sink = sink
    seen: list[str] = []
    run(
        parse("F0 I0 F1 I1 W0 W1")[0],
        stages,
        None,
        batches_of(2),
        SPEC,
        on_backward=lambda action, last: seen.append(f"{action} {last} {len(sink.arrived)}"),
    )
    assert seen == ["I0 False 0", "I1 True 7", "W0 False 14", "W1 True 21"]
    assert sink.arrived == ["dense"] * 14 + ["linear"] * 14
    assert all(parameter.grad_sink is sink for parameter in module.parameters())


class _Counting(Sink):
    """Counts what still waits whenever a product is made."""

    def linear(self, weight: nn.Parameter, x2d: Tensor, grad2d: Tensor) -> None:
        self.arrived.append(sum(grad() is not None for grad in self.watched))


def test_a_product_that_was_put_off_frees_what_it_was_made_of():
    stage, sink = stages_of(0, 1, 1, sunk=True)[0], _Counting()
    for parameter in stage.module.parameters():
        parameter.grad_sink = sink
    loss = stage.forward(0, None, batches_of(1)[0])
    stage.backward_input(0, torch.ones_like(loss))
    sink.arrived.clear()
    sink.watched = [weakref.ref(product.args[2]) for product in stage._waiting[0]]
    stage.backward_weight(0)
    assert sink.arrived == [7, 6, 5, 4, 3, 2, 1]


# ---- what the caller sees --------------------------------------------------------------------------------------


def test_the_last_backward_of_each_chunk_is_announced():
    seen: list[str] = []
    run(
        compile_order("interleaved", 1, 2, 2)[0],
        stages_of(0, 1, 2),
        None,
        batches_of(2),
        SPEC,
        on_backward=lambda action, last: seen.append(f"{action}{'!' if last else ''}"),
    )
    assert seen == ["B0.1", "B0", "B1.1!", "B1!"]


def test_a_loss_gradient_may_be_a_tensor():
    """A loss scale lives on the device; its dtype need not be the loss's."""
    grads = []
    for loss_grad in (0.125, torch.tensor(0.125, dtype=torch.float32)):
        stages = stages_of(0, 1, 1)
        run(compile_order("1f1b", 1, 2)[0], stages, None, batches_of(2), SPEC, loss_grad)
        grads.append(grads_of(stages))
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def _evaluate(orders: Orders, chunks: int) -> tuple[list[Tensor], bool, int]:
    mesh = mesh_of(pp=len(orders))
    stages = stages_of(mesh.pp.rank, len(orders), chunks)
    losses = evaluate(orders[mesh.pp.rank], stages, mesh.links, batches_of(3), SPEC)
    return losses, bool(grads_of(stages)), sum(len(stage._alive) for stage in stages)


@pytest.mark.parametrize(("ranks", "chunks"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_evaluation_gives_the_losses_and_keeps_nothing(ranks, chunks):
    answers = on_ranks(ranks, _evaluate, compile_order("forward_only", ranks, 3, chunks), chunks)
    assert torch.equal(torch.stack(answers[-1][0]), torch.stack(serial(3)[0]))
    assert [(grads, kept) for _, grads, kept in answers] == [(False, 0)] * ranks
    assert all(losses == [] for losses, _, _ in answers[:-1])


class _Watched(nn.Module):
    """Returns a view of nothing that its backward needs, and lets the test watch the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))
        self.seen: list[weakref.ref] = []

    def forward(self, x: Tensor | None, batch: Tensor) -> Tensor:
        y = batch + self.weight
        self.seen.append(weakref.ref(y))
        return y


def test_an_output_that_was_handed_over_is_free_before_its_backward():
    stage = Stage(_Watched(), 0, 2)
    y = stage.forward(0, None, torch.zeros(ROWS, WIDTH, dtype=torch.float64))
    del y
    gc.collect()
    assert stage.module.seen[0]() is None
    stage.backward(0, torch.ones(ROWS, WIDTH, dtype=torch.float64))
    assert stage.module.weight.grad.tolist() == [ROWS] * WIDTH


def _outputs_in_memory(orders: Orders) -> int:
    """On a rank: the most outputs of this stage that were in memory at once."""
    mesh = mesh_of(pp=len(orders))
    stage = stages_of(mesh.pp.rank, len(orders), 1)[0]
    outputs: weakref.WeakSet[Tensor] = weakref.WeakSet()
    forward, counts = stage.forward, []

    def watched(microbatch: int, x: Tensor | None, batch: Tensor) -> Tensor:
        y = forward(microbatch, x, batch)
        outputs.add(y)
        counts.append(len(outputs))
        return y

    stage.forward = watched  # type: ignore[method-assign]
    run(orders[mesh.pp.rank], [stage], mesh.links, batches_of(8), SPEC)
    return max(counts)


def test_sent_outputs_live_no_longer_than_their_microbatch():
    """Of 8 micro-batches a first stage of 3 holds 3 sent outputs at most (the last keeps its 8 losses)."""
    assert on_ranks(3, _outputs_in_memory, compile_order("1f1b", 3, 8)) == [3, 2, 8]


def test_a_batch_shape_that_does_not_flow_is_told_with_both_shapes():
    stages = [Stage(Chain(0, 1, last=False), 0, 2)]
    message = (
        r"ValueError: SF0 \(micro-batch 0, chunk 0\) of step 3 on rank 0, stage 0 of 2, "
        r"would send \[3, 4\] torch.float64, but \[9, 4\] torch.float64 is expected"
    )
    with pytest.raises(RankFailed, match=message):
        on_ranks(2, _send_wrong_shape, stages)


def _send_wrong_shape(stages: list[Stage]) -> None:
    mesh = mesh_of(pp=2)
    if mesh.pp.rank == 0:
        run(
            parse("F0 SF0")[0],
            stages,
            mesh.links,
            batches_of(1),
            SPEC._replace(shape=(9, WIDTH)),
            step=3,
        )


def test_a_failed_step_leaves_nothing_behind():
    stages = stages_of(0, 1, 1)
    with pytest.raises(KeyError):
        run(parse("F0 B1")[0], stages, None, batches_of(2), SPEC)
    assert not stages[0]._alive
    losses = run(compile_order("1f1b", 1, 2)[0], stages, None, batches_of(2), SPEC)
    assert torch.equal(torch.stack(losses), torch.stack(serial(2)[0]))


# ---- links and what can go wrong on them -----------------------------------------------------------------------


def _connect(ranks: int) -> bool:
    mesh = mesh_of(pp=ranks)
    connect(mesh.links, mesh.device)
    return True


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_links_of_a_ring_can_be_opened(ranks):
    assert on_ranks(ranks, _connect, ranks) == [True] * ranks


def _beside_a_broken_rank(orders: Orders, dies: bool) -> str:
    """On a rank: one step; the last rank plays nothing. Its death is seen at once, its silence after the timeout, in
    which the links must stand, too."""
    timeout = timedelta(seconds=300 if dies else 5)
    mesh = Mesh.build(Layout(pp=len(orders)), maker=group_maker(Timeouts.equal(timeout)))
    if mesh.pp.is_last and dies:
        os._exit(1)
    try:
        if not mesh.pp.is_last:
            run(
                orders[mesh.pp.rank],
                stages_of(mesh.pp.rank, len(orders), 1),
                mesh.links,
                batches_of(4),
                SPEC,
                step=17,
            )
    finally:
        if not dies:
            dist.barrier()  # the last rank is silent until the others have given up
    return ""


@pytest.mark.parametrize("dies", [False, True], ids=["silent", "dead"])
def test_a_rank_that_never_sends_is_named_with_the_action_that_waits_for_it(dies):
    message = (
        r"rank 0: TransferError: RB0 \(micro-batch 0, chunk 0\) of step 17 on rank 0, "
        r"stage 0 of 2, from rank 1 failed: \S+"
    )
    with pytest.raises(RankFailed, match=message):
        on_ranks(2, _beside_a_broken_rank, compile_order("1f1b", 2, 4), dies)


class _HangsInALayer(torch.nn.Module):
    def forward(self, x, batch):
        raise CommunicationError("all_reduce over tp failed on rank 1 of 2: timed out")


def test_a_collective_that_fails_inside_a_stage_is_named_with_the_action():
    order = compile_order("1f1b", 1, 1)[0]
    message = r"F0 \(micro-batch 0, chunk 0\) of step 9, stage 0 of 1, all_reduce over tp failed on rank 1"
    with pytest.raises(CommunicationError, match=message):
        run(order, [Stage(_HangsInALayer())], None, batches_of(1), SPEC, step=9)
