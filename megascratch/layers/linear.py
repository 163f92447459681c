"""Tensor-parallel linear layers: weights split over tp. Shapes: s sequence, b micro-batch; the sequence comes first.

    ColumnParallelLinear   [s or s/tp, b, in]     -> [s, b, out/tp]
    RowParallelLinear      [s, b, in/tp]          -> [s or s/tp, b, out]

(Shoeybi et al. 2019, arXiv 1909.08053, figure 3.) With sequence parallelism the activations between the pairs are
split along the sequence (Korthikanti et al. 2022, arXiv 2205.05198). The gradient of a weight with a ``grad_sink`` is
added directly to the main-gradient buffer, and autograd sees None.
"""

import torch
from torch import Tensor, nn

from megascratch.config.layout import Layout
from megascratch.layers.kernels.products import product
from megascratch.layers.recompute import to_keep
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import (
    all_gather,
    reduce_from,
    reduce_scatter_to,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)
from megascratch.parallel.grad_sink import GradSink
from megascratch.parallel.shard import Cut, Part, Shard

_Layer = tuple[nn.Parameter, Axis, bool]  # weight, axis, whether x is cut along dim 0


class _Linear(torch.autograd.Function):
    """x Wᵀ + b. Backward overlaps the reduction of the input's gradient over the axis with the weight's gradient.

    The weight is an input for autograd (`known`) only where that is needed: an edge that never carries a gradient costs
    time in every backward. For a frozen weight the input is not kept, and its gradient is not computed.
    """

    @staticmethod
    def forward(ctx, x: Tensor, known: Tensor | None, bias: Tensor | None, layer: _Layer) -> Tensor:
        weight, axis, gather = layer
        kept, ctx.make = to_keep(x)
        # under SP only this rank's part is kept; backward gathers it again
        ctx.save_for_backward(kept if weight.requires_grad else None)
        ctx.layer = layer
        if gather:
            x = all_gather(x, axis)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors  # None for a frozen weight
        weight, axis, gather = ctx.layer
        if ctx.make is not None and x is not None:
            x = ctx.make(x)
        gathered = start_all_gather(x, axis) if gather and x is not None else None
        grad_x = product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        if gathered is not None:
            x = gathered.wait()
        pending = None
        if grad_x is not None and axis.size > 1:
            pending = (
                start_reduce_scatter(grad_x, axis) if gather else start_all_reduce(grad_x, axis)
            )
        grad_2d = grad.flatten(0, -2)  # [n, out]
        grad_weight = None
        if x is not None:
            grad_weight = _weight_gradient(weight, x.flatten(0, -2), grad_2d)  # x: [n, in]
        grad_bias = grad_2d.sum(0) if ctx.needs_input_grad[2] else None
        if pending is not None:
            grad_x = pending.wait()
        return grad_x, grad_weight, grad_bias, None


def _weight_gradient(weight: nn.Parameter, x: Tensor, grad: Tensor) -> Tensor | None:
    sink: GradSink | None = getattr(weight, "grad_sink", None)
    if sink is None:
        return grad.t() @ x
    sink.linear(weight, x, grad)
    return None


def linear(
    x: Tensor, weight: nn.Parameter, bias: Tensor | None, axis: Axis, gather: bool = False
) -> Tensor:
    """x Wᵀ + b, with x complete or (gather) split along dim 0 over the axis; the gradient of x is summed over it."""
    apply = _outside_graphs if torch.compiler.is_compiling() else _Linear.apply
    known = None if x.requires_grad and hasattr(weight, "grad_sink") else weight
    return apply(x, known, bias, (weight, axis, gather))


@torch.compiler.disable
def _outside_graphs(*args) -> Tensor:
    """Keeps sinks and collectives out of compiled graphs; the compiler fuses the code between them."""
    return _Linear.apply(*args)


class ColumnParallelLinear(nn.Module):
    """A linear layer with the output dim split over tp; fused parts (q, k, v; gate, up) are each split separately."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        tp: Axis,
        *,
        bias: bool,
        std: float,
        parts: tuple[Part, ...] = (),
        sequence_parallel: bool = False,
    ):
        super().__init__()
        self.tp = tp
        self.gather = sequence_parallel and tp.size > 1
        cuts = (Cut("tp", 0, parts),)
        self.shards = {"weight": Shard((outputs, inputs), cuts, std=std)}
        if bias:
            self.shards["bias"] = Shard((outputs,), cuts, role="bias")
        self.weight = _parameter(self.shards["weight"], tp)
        self.bias = _parameter(self.shards["bias"], tp) if bias else None

    def forward(self, x: Tensor) -> Tensor:  # [s or s/tp, b, in] -> [s, b, out/tp]
        return linear(x, self.weight, self.bias, self.tp, self.gather)


class RowParallelLinear(nn.Module):
    """A linear layer with the input dim split over tp; the bias is not split and is added once, after the sum."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        tp: Axis,
        *,
        bias: bool,
        std: float,
        sequence_parallel: bool = False,
    ):
        super().__init__()
        self.tp = tp
        self.alone = Axis.alone("tp")
        self.scatter = sequence_parallel and tp.size > 1
        self.shards = {"weight": Shard((outputs, inputs), (Cut("tp", 1),), std=std)}
        if bias:  # under SP each rank adds it to different positions
            grad_sum = ("tp",) if self.scatter else ()
            self.shards["bias"] = Shard((outputs,), role="bias", grad_sum=grad_sum)
        self.weight = _parameter(self.shards["weight"], tp)
        self.bias = _parameter(self.shards["bias"], tp) if bias else None

    def forward(self, x: Tensor) -> Tensor:  # [s, b, in/tp] -> [s or s/tp, b, out]
        if self.tp.size == 1:
            return linear(x, self.weight, self.bias, self.alone)
        partial = linear(x, self.weight, None, self.alone)  # [s, b, out], to be summed over tp
        y = reduce_scatter_to(partial, self.tp) if self.scatter else reduce_from(partial, self.tp)
        return y if self.bias is None else y + self.bias


def _parameter(shard: Shard, tp: Axis) -> nn.Parameter:
    return nn.Parameter(torch.empty(shard.local_shape(Layout(tp=tp.size))))
