"""The MLP of a block, with GELU, squared ReLU (So et al. 2021), SwiGLU or another gated activation (Shazeer 2020); its
width is split over tp."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from megascratch.config.layers import MLPSpec
from megascratch.config.registry import facts_of, look_up
from megascratch.layers.context import ForwardContext
from megascratch.layers.kernels.activations import gated, gelu, quick_gelu, swiglu
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.recompute import forgettable
from megascratch.layers.sublayer import Sublayer, SublayerSite
from megascratch.parallel.shard import Part


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


class Activation(NamedTuple):
    """A function from `inputs` numbers per channel of the MLP, one after the other in the last dim, to one."""

    function: Callable[[Tensor], Tensor]
    inputs: int = 1
    of_gate: Callable[[Tensor], Tensor] | None = None
    """With two inputs: what the gate goes through."""


def _by_gate(of_gate: Callable[[Tensor], Tensor]) -> Activation:
    return Activation(partial(gated, function=of_gate, clamp=None, offset=0.0), 2, of_gate)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(gelu),
    "openai_gelu": Activation(partial(gelu, by_tanh=True)),
    "squared_relu": Activation(squared_relu),
    "swiglu": Activation(swiglu, inputs=2, of_gate=F.silu),  # gate and up
    "geglu": _by_gate(partial(F.gelu, approximate="tanh")),
    "geglu_exact": _by_gate(F.gelu),
    "quick_geglu": _by_gate(quick_gelu),
}


def _activation(spec: MLPSpec) -> Activation:
    """A row of the table, or the function that was registered, with its options."""
    found = look_up("activation", spec.activation, ACTIVATIONS)
    if isinstance(found, Activation):
        if found.of_gate is None or (spec.clamp is None and spec.linear_offset == 0):
            return found
        limited = partial(
            gated, function=found.of_gate, clamp=spec.clamp, offset=spec.linear_offset
        )
        return found._replace(function=limited)
    inputs = facts_of("activation", spec.activation)["inputs"]
    return Activation(partial(found, **dict(spec.activation_options)), inputs)


class MLP(Sublayer):
    def __init__(self, spec: MLPSpec, site: SublayerSite):
        super().__init__()
        activation = _activation(spec)
        parts = (Part(spec.width, spec.width),) * activation.inputs
        self.fc1 = ColumnParallelLinear(
            site.hidden_size,
            spec.width * len(parts),
            site.tp,
            parts=parts,
            bias=spec.bias,
            std=site.std,
            sequence_parallel=site.sequence_parallel,
        )
        self.fc2 = RowParallelLinear(
            spec.width,
            site.hidden_size,
            site.tp,
            bias=spec.bias,
            std=site.output_std,
            sequence_parallel=site.sequence_parallel,
        )
        self.activation = activation.function
        self.recompute_activation = False

    def forward(
        self, x: Tensor, context: ForwardContext
    ) -> Tensor:  # [s or s/tp, b, h] -> the same
        inner = self.fc1(x)
        if self.recompute_activation and self.training:
            return self.fc2(forgettable(self.activation, inner))
        return self.fc2(self.activation(inner))
