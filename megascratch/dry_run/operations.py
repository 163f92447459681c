"""Counts the floating-point operations of a step on meta tensors: those of matrix products and of attention, of which
everything else is a small part. A recomputed product counts again, because the device computes it again.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megascratch.dry_run.steps import operation_of

aten = torch.ops.aten
Count = Callable[..., int]
"""The arguments of an operation -> its FLOPs."""


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
        # by action, and by the name of the kernel
        self.uses: dict[str, dict[str, KernelUse]] = defaultdict(lambda: defaultdict(KernelUse))

    def at(self, during: str) -> None:
        """Says what the rank does from now on."""
        self.during = during

    def launched(self, kernel: str) -> None:
        """Counts a call of a kernel that torch does not know."""
        self.uses[self.during][kernel].calls += 1

    def flops_by_operation(self, times: Mapping[str, int]) -> dict[str, int]:
        """FLOPs of each operation of the schedule, if an action counts so many `times`; by default once."""
        sums: Counter[str] = Counter()
        for during, uses in self.uses.items():
            flops = sum(use.flops for use in uses.values())
            sums[operation_of(during)] += times.get(during, 1) * flops
        return dict(sums)

    def kernels(self, times: Mapping[str, int]) -> dict[str, KernelUse]:
        """What each kernel did, if an action counts so many `times`."""
        sums: dict[str, KernelUse] = defaultdict(KernelUse)
        for during, uses in self.uses.items():
            for name, use in uses.items():
                sums[name].calls += times.get(during, 1) * use.calls
                sums[name].flops += times.get(during, 1) * use.flops
        return dict(sums)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func._overloadpacket)
        if count is not None:
            use = self.uses[self.during][func._overloadpacket.__name__]
            use.calls += 1
            use.flops += count(*args)
        return result


def _few(*args: Any) -> int:
    """None that count: the time of these goes into memory."""
    return 0


def _product(first: int) -> Count:
    """2 m n k of the product of arguments `first` [..., m, k] and the next one [..., k, n]."""

    def count(*args: Any) -> int:
        flops: int = 2 * args[first].numel() * args[first + 1].shape[-1]
        return flops

    return count


def _linear(x: Tensor, weight: Tensor, *args: Any) -> int:
    """The same for x [..., k] and weight [n, k]."""
    return 2 * x.numel() * weight.shape[0]


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> int:
    """The scores and the weighted sum of values, counted in full although they are causal."""
    return 2 * q.numel() * (k.shape[-2] + v.shape[-2])


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> int:
    """The scores again, and two products for the gradient of each of the two products."""
    return _attention(q, k, v) // 2 * 5


# not every build of torch has it
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_COUNTS: dict[Any, Count] = {
    aten._fused_adamw_: _few,
    aten.native_layer_norm: _few,
    aten.native_layer_norm_backward: _few,
    aten.mm: _product(0),
    aten.bmm: _product(0),
    aten.addmm: _product(1),
    aten.addmm_: _product(1),
    aten.baddbmm: _product(1),
    aten.baddbmm_: _product(1),
    _ONEDNN: _linear,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
