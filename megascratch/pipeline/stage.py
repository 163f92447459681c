"""A pipeline stage: runs forward and backward of single micro-batches on one slice of the model.

A stage wraps any `module(x, batch) -> y`; it knows its number, not the model. Between forward and backward it keeps the
input of a micro-batch and the gradient edge of its output. The output itself belongs to the next stage; its memory is
free once it has been sent.
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
    """A gradient sink that delays matrix products until W, for a backward that is split into I and W."""

    def __init__(self, inner: GradSink, waiting: Waiting):
        self.inner = inner
        self.waiting = waiting
        self.rows = inner.rows
        self.dense = inner.dense

    def linear(self, weight: nn.Parameter, x: Tensor, grad: Tensor) -> None:
        self.waiting.append(partial(self.inner.linear, weight, x, grad))


class Stage:
    """Virtual stage `index` of `count`.

    The module gets x = None on the first stage and returns a scalar sum of losses on the last; between stages all
    tensors have the same shape. `batch` is passed to it unchanged.
    """

    def __init__(self, module: nn.Module, index: int = 0, count: int = 1):
        self.module = module
        self.index = index
        self.count = count
        self.is_first = index == 0
        self.is_last = index == count - 1
        # the edge is None where no weight of the stage or before it is trained
        self._alive: dict[int, tuple[Tensor | None, GradientEdge | None]] = {}
        self._waiting: dict[int, Waiting] = {}

    def forward(self, microbatch: int, x: Tensor | None, batch: Any) -> Tensor:
        """Returns the output, detached from its graph. Under no_grad nothing is kept."""
        training = torch.is_grad_enabled()
        if training and x is not None:
            x.requires_grad_()
        y: Tensor = self.module(x, batch)
        if training:
            self._alive[microbatch] = x, get_gradient_edge(y) if y.requires_grad else None
        return y.detach()

    def backward(self, microbatch: int, grad: Tensor) -> Tensor | None:
        """Maps the gradient of the output to that of the input (None on the first stage); weights get theirs, too."""
        x, edge = self._alive.pop(microbatch)
        if edge is not None:
            torch.autograd.backward(edge, grad)
        return None if x is None else x.grad

    def backward_input(self, microbatch: int, grad: Tensor) -> Tensor | None:
        """Like `backward`, but matrix products for weights with a sink are delayed until `backward_weight`."""
        waiting: Waiting = deque()
        self._waiting[microbatch] = waiting
        with self._deferring(waiting):
            return self.backward(microbatch, grad)

    @torch.no_grad()
    def backward_weight(self, microbatch: int) -> None:
        """Runs the products that `backward_input` delayed; each frees its inputs."""
        waiting = self._waiting.pop(microbatch)
        while waiting:
            waiting.popleft()()

    def reset(self) -> None:
        """Drops the state of all micro-batches after a failed step."""
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
