"""State of a layer that no gradient moves: biases of a router, moving averages.

A layer registers a buffer and declares a `Shard` for it, as for a weight. The buffer is then in checkpoints
(``buffer.NAME``), in the comparison of replicas and in models that are loaded for inference; it is in no bucket, norm
or optimizer. It has at least 32 bits: changes that are too small for 16 bits add up in it.

A layer that changes such a state is a `KeepsState`. What it wants to know of the micro-batches of a step it adds up
with `counted` in tensors of its own (buffers with ``persistent=False``), and it changes its state by them when the step
was taken.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from megascratch.config.layout import View
from megascratch.parallel.axis import Axis
from megascratch.parallel.shard import Shard


class KeepsState(nn.Module, ABC):
    """A layer whose state changes after a step; both methods are called on all ranks, without recording gradients."""

    @abstractmethod
    def begin_step(self) -> None:
        """Forgets what was counted since the last step that was taken: called before the first forward of a step."""

    @abstractmethod
    def step_taken(self, data: Axis) -> None:
        """Changes the state in place. Called after the weights were updated; not after a step that was skipped, was bad
        or had nothing to learn, and not after an evaluation.

        Args:
            data: the ranks that hold the same state and saw other samples: what they counted must be summed.
        """


def kept_state(module: nn.Module, shards: Mapping[str, Shard]) -> Iterator[tuple[str, Tensor]]:
    """The buffers that have a shard, by their full names."""
    for name, buffer in module.named_buffers():
        if name in shards:
            yield name, buffer


def view_of(layer: KeepsState) -> View:
    """The view of the ranks in which a layer keeps its state; its states are all of one view."""
    shards: Mapping[str, Shard] = layer.shards  # type: ignore[assignment]
    views = {shards[name].view for name, _ in layer.named_buffers(recurse=False) if name in shards}
    (view,) = views
    return view


def saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to the state of the model, as torch sees it: those that must have a shard."""
    saved = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer


def widen_buffers(module: nn.Module) -> None:
    """Converts buffers of 16 bits to fp32; called after a module was converted to 16 bits."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point() and buffer.itemsize == 2:
                setattr(part, name, buffer.float())


class _Counted(torch.autograd.Function):
    """Returns x; its backward adds `amount` to `total`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, amount: Tensor, total: Tensor
    ) -> Tensor:
        ctx.amount = amount
        ctx.total = total
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.total.add_(ctx.amount)
        return grad, None, None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def counted(x: Tensor, amount: Tensor, total: Tensor) -> Tensor:
    """Returns x, and adds `amount` to `total` once for each micro-batch that is trained on.

    It is added when the gradient of x arrives: so an evaluation adds nothing, and a forward that backward computes
    again adds nothing more. The gradient arrives also where no weight before x is trained.

    Args:
        x: what the layer continues with.
        amount: of the shape of `total`; recorded without a gradient.
    """
    if not torch.is_grad_enabled():
        return x
    anchor = None
    if not x.requires_grad:
        anchor = torch.zeros((), device=x.device, requires_grad=True)
    return cast(Tensor, _Counted.apply(x, anchor, amount.detach(), total))  # type: ignore[no-untyped-call]
