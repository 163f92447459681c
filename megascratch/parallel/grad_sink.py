"""The interface through which layers hand over weight gradients instead of returning them through autograd (compare
Megatron's ``main_grad``): data parallelism collects them, and a pipeline stage may delay them. Layers find the sink as
``weight.grad_sink``.
"""

from typing import Protocol

from torch import Tensor, nn


class GradSink(Protocol):
    """Accumulates the gradient of a weight, one contribution at a time."""

    def linear(self, weight: nn.Parameter, x: Tensor, grad: Tensor) -> None:
        """Adds gradᵀ x: weight [out, in], x [n, in], grad [n, out]."""

    def rows(self, weight: nn.Parameter, ids: Tensor, grad: Tensor) -> None:
        """Adds row i of grad [n, h] to row ids[i] of the gradient; ids [n]."""

    def dense(self, weight: nn.Parameter, grad: Tensor) -> None:
        """Adds grad, which has the shape of the weight."""
