"""Where weight gradients go instead of through autograd: layers deliver, data parallelism collects, a pipeline
stage may put a delivery off. Found by the layers as ``weight.grad_sink``.
"""

from typing import Protocol

from torch import Tensor, nn


class GradSink(Protocol):
    """Takes the gradient of one weight, contribution by contribution."""

    def linear(self, weight: nn.Parameter, x: Tensor, grad: Tensor) -> None:
        """Adds gradᵀ x: weight [out, in], x [n, in], grad [n, out]."""

    def rows(self, weight: nn.Parameter, ids: Tensor, grad: Tensor) -> None:
        """Adds row i of grad [n, h] to row ids[i]."""

    def dense(self, weight: nn.Parameter, grad: Tensor) -> None:
        """Adds grad, of the weight's shape."""
