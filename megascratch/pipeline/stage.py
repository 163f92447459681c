"""One slice of the model: forward and backward of single micro-batches, keeping between the two only what backward
needs. A stage wraps any `module(x, batch) -> y`; it knows its number, not the model.

The input of a micro-batch and the gradient edge of its output are kept; the output itself belongs to the next stage
and its memory is free once it has been sent.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from megascratch.parallel.grad_sink import GradSink

Waiting = deque[Callable[[], None]]


class Deferred:
    """A sink that puts matrix products off, for a backward that is split into I and W; all else passes through."""

    def __init__(self, inner: GradSink, waiting: Waiting):
        self.inner, self.waiting = inner, waiting
        self.rows, self.dense = inner.rows, inner.dense

    def linear(self, weight: nn.Parameter, x: Tensor, grad: Tensor) -> None:
        self.waiting.append(partial(self.inner.linear, weight, x, grad))


class Stage:
    """Virtual stage `index` of `count`.

    The module gets x = None on the first stage and returns a scalar sum of losses on the last; between stages it maps
    and returns tensors of one fixed shape. `batch` is handed through as it is.
    """

    def __init__(self, module: nn.Module, index: int = 0, count: int = 1):
        self.module, self.index, self.count = module, index, count
        self.is_first, self.is_last = index == 0, index == count - 1
        self._alive: dict[int, tuple[Tensor | None, GradientEdge]] = {}
        self._waiting: dict[int, Waiting] = {}

    def forward(self, microbatch: int, x: Tensor | None, batch: Any) -> Tensor:
        """The output, cut off from its graph. Under no_grad nothing is kept."""
        training = torch.is_grad_enabled()
        if training and x is not None:
            x.requires_grad_()
        y: Tensor = self.module(x, batch)
        if training:
            self._alive[microbatch] = x, get_gradient_edge(y)
        return y.detach()

    def backward(self, microbatch: int, grad: Tensor) -> Tensor | None:
        """Gradient of the output in, of the input out (None on the first stage); weights get theirs."""
        x, edge = self._alive.pop(microbatch)
        torch.autograd.backward(edge, grad)
        return None if x is None else x.grad

    def backward_input(self, microbatch: int, grad: Tensor) -> Tensor | None:
        """As `backward`, but weights with a sink get their matrix products only in `backward_weight`."""
        waiting = self._waiting[microbatch] = deque()
        with self._deferring(waiting):
            return self.backward(microbatch, grad)

    @torch.no_grad()
    def backward_weight(self, microbatch: int) -> None:
        """What `backward_input` put off; each product frees what it was made of."""
        waiting = self._waiting.pop(microbatch)
        while waiting:
            waiting.popleft()()

    def reset(self) -> None:
        """Forgets every micro-batch, after a step that failed."""
        self._alive.clear()
        self._waiting.clear()

    @cached_property
    def _parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(self.module.parameters())

    @contextmanager
    def _deferring(self, waiting: Waiting) -> Iterator[None]:
        sinks = [(p, p.grad_sink) for p in self._parameters if hasattr(p, "grad_sink")]
        try:
            for parameter, sink in sinks:
                parameter.grad_sink = Deferred(sink, waiting)
            yield
        finally:
            for parameter, sink in sinks:
                parameter.grad_sink = sink
