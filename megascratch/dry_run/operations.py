"""Counts the floating-point operations of a step on meta tensors: those of matrix products and of attention, of which
everything else is a small part. A recomputed product counts again, because the device computes it again.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


@dataclass
class KernelUse:
    """What one kernel did in a step."""

    calls: int = 0
    flops: int = 0


class OperationCounter(TorchDispatchMode):
    """A dispatch mode that counts FLOPs: two for each multiplication with its addition."""

    def __init__(self) -> None:
        super().__init__()
        self.during = ""
        self.flops: Counter[str] = Counter()  # by action
        self.kernels: dict[str, KernelUse] = defaultdict(KernelUse)  # by name

    def at(self, during: str) -> None:
        """Says what the rank does from now on."""
        self.during = during

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = _COUNTS.get(func._overloadpacket)
        if count is not None:
            flops = count(*args, **kwargs, out_val=result)
            self.flops[self.during] += flops
            kernel = self.kernels[func._overloadpacket.__name__]
            kernel.calls += 1
            kernel.flops += flops
        return result


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    """The scores and the weighted sum of values, counted in full although they are causal."""
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape))


_COUNTS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
