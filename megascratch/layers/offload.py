"""Keeps activations of parts of the model in host memory until backward needs them (compare Rhu et al. 2016,
arXiv 1602.08124, vDNN).

On CUDA the copies run on a stream of their own while the device computes: out when a tensor is saved; back when
backward reaches the tensor saved after it, so that one is on its way while the other is used. The numbers are the same
bits. On other devices the copies are made at once, by the same code.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megascratch.parallel.device_kind import device_kind

SMALLEST = 1 << 10  # bytes: smaller tensors stay where they are, a copy costs more than they take
AHEAD = 2  # tensors that are fetched before backward reaches them


class _Saved:
    """A tensor that waits in host memory.

    Args:
        before: the one that was saved before it, which backward needs after it.
    """

    def __init__(self, x: Tensor, before: "_Saved | None", stream: torch.cuda.Stream | None):
        self.device = x.device
        self.before = before
        self.stream = stream
        self.fetched: Tensor | None = None
        self.host = torch.empty_like(x, device="cpu", pin_memory=stream is not None)
        if stream is None:
            self.host.copy_(x)
            return
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            self.host.copy_(x, non_blocking=True)
        x.record_stream(stream)

    def fetch(self) -> None:
        """Starts the copy back."""
        if self.fetched is not None:
            return
        if self.stream is None:
            self.fetched = self.host.to(self.device, copy=True)
            return
        with torch.cuda.stream(self.stream):
            self.fetched = self.host.to(self.device, non_blocking=True)

    def take(self) -> Tensor:
        """The tensor on its device; starts fetching those that are needed next."""
        self.fetch()
        found = self.fetched
        assert found is not None
        self.fetched = None  # backward may ask again, after another fetch
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            found.record_stream(current)
        following = self.before
        for _ in range(AHEAD):
            if following is None:
                break
            following.fetch()
            following = following.before
        return found


class HostMemory:
    """Where the activations of the layers of one chunk wait."""

    def __init__(self) -> None:
        self.last: _Saved | None = None
        self.stream: torch.cuda.Stream | None = None

    def keeping(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Returns function(*args); what it saves for backward goes to host memory."""
        if not torch.is_grad_enabled():
            return function(*args)
        with torch.autograd.graph.saved_tensors_hooks(self._save, _take):
            return function(*args)

    def begin(self) -> None:
        """Called before the forward of a micro-batch: what is saved from now on has nothing before it."""
        self.last = None

    def _save(self, x: Tensor) -> "Tensor | _Saved":
        if isinstance(x, nn.Parameter) or x.nbytes < SMALLEST:
            return x
        if device_kind(x) == "cuda" and not x.is_meta and self.stream is None:
            self.stream = torch.cuda.Stream(x.device)
        self.last = _Saved(x, self.last, self.stream)
        return self.last


def _take(saved: "Tensor | _Saved") -> Tensor:
    return saved.take() if isinstance(saved, _Saved) else saved
