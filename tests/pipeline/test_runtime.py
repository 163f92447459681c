"""What is moved in time or over ranks gives the same bits: every schedule equals the serial run of one process."""


import pytest
import torch
from torch import Tensor, nn

from megascratch.pipeline.passes import Orders, compile_order
from megascratch.pipeline.runtime import TensorSpec, run
from megascratch.pipeline.schedule import virtual_stage
from megascratch.pipeline.stage import Stage
from tests.pool import mesh_of, on_ranks

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
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            self.add_module(str(i), layer)

    def forward(self, x: Tensor | None, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_() if x is None else x
        for layer in self.children():
            x = torch.tanh(_SunkLinear.apply(x, layer.weight, layer.bias) if self.sunk else layer(x))
        return (x - batch.flip(0)).square().sum() if self.last else x


def batches_of(microbatches: int) -> list[Tensor]:
    return list(torch.randn(microbatches, ROWS, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64))


def cut(virtual: int, count: int, uneven: bool) -> tuple[int, int]:
    """Layers of a virtual stage; uneven: all that one stage can spare lie on the first, the last may hold none."""
    if not uneven:
        return virtual * LAYERS // count, (virtual + 1) * LAYERS // count
    bounds = [0, *range(LAYERS - count + 2, LAYERS + 1), LAYERS]
    return bounds[virtual], bounds[virtual + 1]


def stages_of(rank: int, ranks: int, chunks: int, uneven: bool = False, sunk: bool = False) -> list[Stage]:
    stages, count = [], ranks * chunks
    for chunk in range(chunks):
        v = virtual_stage(rank, ranks, chunk)
        stages.append(Stage(Chain(*cut(v, count, uneven), last=v == count - 1, sunk=sunk), v, count))
    for stage in stages:
        for parameter in stage.module.parameters() if sunk else ():
            parameter.grad_sink = Sink()
    return stages


def grads_of(stages: list[Stage]) -> dict[str, Tensor]:
    return {name: p.grad for stage in stages for name, p in stage.module.named_parameters() if p.grad is not None}


def play_orders(orders: Orders, chunks: int, uneven: bool, sunk: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
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


def assert_equals_serial(orders: Orders, chunks: int = 1, uneven: bool = False, sunk: bool = False) -> None:
    losses, grads = serial(1 + max(a.microbatch for a in orders[0]), sunk)
    answers = on_ranks(len(orders), play_orders, orders, chunks, uneven, sunk)
    assert [rank for rank, (found, _) in enumerate(answers) if found] == [len(orders) - 1]
    assert torch.equal(torch.stack(answers[-1][0]), torch.stack(losses))
    found = {name: grad for _, part in answers for name, grad in part.items()}
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        assert torch.equal(found[name], grad), name


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize(("schedule", "ranks", "microbatches", "chunks", "group"), [
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
])
def test_every_schedule_gives_the_bits_of_the_serial_run(schedule, ranks, microbatches, chunks, group, uneven):
    assert_equals_serial(compile_order(schedule, ranks, microbatches, chunks, group), chunks, uneven)
