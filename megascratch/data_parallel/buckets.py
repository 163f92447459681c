"""Gradient buckets: collect the gradients of weights in flat tensors and reduce them while backward still runs.

A layer passes the gradient of its weight to ``weight.grad_sink`` (a `GradSlot`) and returns None to autograd; for other
parameters a hook moves ``.grad`` there. Gradients accumulate in fp32 (fp64 for fp64 weights) in ``weight.main_grad``, a
view of a bucket; the first contribution of a step overwrites, so no zeroing is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from megascratch.data_parallel.bucket_layout import BucketLayout
from megascratch.parallel.axis import Axis
from megascratch.parallel.device_kind import device_kind
from megascratch.parallel.pending import Pending
from megascratch.runtime.faults import fault_point


class GradSlot:
    """Accumulates the gradient of one weight over the micro-batches of a step."""

    def __init__(self, name: str, main: Tensor, bucket: "Bucket"):
        self.name = name
        self.main = main
        self.bucket = bucket
        self.fresh = True  # nothing has arrived in this step
        self.arrived = False  # in the last micro-batch
        self.tell: Callable[[GradSlot], None] | None = None  # called after each contribution

    def linear(self, weight: Tensor, x: Tensor, grad: Tensor) -> None:
        """Adds gradᵀ x. weight [out, in], x [n, in], grad [n, out]. Called where autograd records nothing."""
        if x.dtype != self.main.dtype or grad.dtype != self.main.dtype:
            self._add_product(grad.t(), x)
        elif self.fresh:
            torch.mm(grad.t(), x, out=self.main)
        else:
            self.main.addmm_(grad.t(), x)
        self._contributed()

    @torch.no_grad()
    def rows(self, weight: Tensor, ids: Tensor, grad: Tensor) -> None:
        """Adds row i of grad [n, in] to row ids[i]; ids [n] are within this rank's rows."""
        if self.fresh:
            self.main.zero_()
        grad = grad.to(self.main.dtype)
        if (
            device_kind(grad) == "cuda"
        ):  # index_add_ would add by atomics, in any order: a resumed run would differ in its last bits
            self.main.index_put_((ids,), grad, accumulate=True)
        else:
            self.main.index_add_(0, ids, grad)
        self._contributed()

    @torch.no_grad()
    def dense(self, weight: Tensor, grad: Tensor) -> None:
        """Adds grad, of the weight's shape."""
        self._add(grad)
        self._contributed()

    def from_autograd(self, weight: Tensor) -> None:
        """Adds the gradient that autograd left in ``weight.grad`` and frees it."""
        if weight.grad is not None:
            self.dense(weight, weight.grad)
            weight.grad = None

    def _add_product(self, a: Tensor, b: Tensor) -> None:
        """Adds a b of 16-bit matrices; without rounding it to 16 bits or storing it separately, if the device can."""
        if not (device_kind(a) == "cuda" and (a.is_meta or _adds_wide_products())):
            self._add(a @ b)
        elif self.fresh:
            torch.mm(a, b, out_dtype=self.main.dtype, out=self.main)
        else:
            torch.addmm(self.main, a, b, out_dtype=self.main.dtype, out=self.main)

    def _add(self, grad: Tensor) -> None:
        if self.fresh:
            self.main.copy_(grad)
        else:
            self.main.add_(grad)

    def _contributed(self) -> None:
        self.fresh = False
        if self.tell is not None:
            self.tell(self)


@lru_cache(maxsize=1)
def _adds_wide_products() -> bool:
    """Whether this CUDA build of torch has a 16-bit matmul with fp32 output (torch 2.8 has none)."""
    narrow = torch.ones(16, 16, dtype=torch.bfloat16, device="cuda")
    wide = torch.ones(16, 16, dtype=torch.float32, device="cuda")
    try:
        torch.addmm(wide, narrow, narrow, out_dtype=torch.float32, out=wide)
    except RuntimeError:
        return False
    return bool((wide == 17).all())


def _handing_over(slot: GradSlot) -> Callable[[Tensor], None]:
    """A hook that moves ``.grad`` into the slot, through a weak reference: Python's garbage collector cannot see cycles
    through autograd hooks, so the model, and the process groups that its layers hold, would never be freed."""
    taker = WeakMethod(slot.from_autograd)

    def hand_over(weight: Tensor) -> None:
        take = taker()
        if take is not None:
            take(weight)

    return hand_over


class Bucket:
    """Parameters stored in one flat tensor, and their main gradients in another, which the ranks of `axis` sum."""

    def __init__(self, plan: BucketLayout, parameters: Mapping[str, nn.Parameter], axis: Axis):
        device = parameters[plan.places[0].name].device
        main_dtype = torch.float64 if plan.dtype == torch.float64 else torch.float32
        self.plan = plan
        self.axis = axis
        self.weights = torch.zeros(plan.size, dtype=plan.dtype, device=device)
        self.grads = torch.zeros(plan.size, dtype=main_dtype, device=device)
        self.slots: list[GradSlot] = []
        self.pending: Pending | None = None  # the reduction, once it has started
        self.arriving: Pending | None = (
            None  # the gather of weights that other ranks updated, until it was awaited
        )
        for place in plan.places:
            self._move_in(parameters[place.name], place.name, slice(place.start, place.stop))

    def _move_in(self, parameter: nn.Parameter, name: str, place: slice) -> None:
        self.weights[place].view(parameter.shape).copy_(parameter.detach())
        parameter.data = self.weights[place].view(parameter.shape)
        main = self.grads[place].view(parameter.shape)
        slot = GradSlot(name, main, self)
        parameter.main_grad = main  # type: ignore[attr-defined]
        parameter.grad_sink = slot  # type: ignore[attr-defined]
        parameter.register_post_accumulate_grad_hook(_handing_over(slot))
        self.slots.append(slot)

    def await_weights(self) -> None:
        """Waits until the updated weights of all ranks have arrived."""
        if self.arriving is not None:
            self.arriving.wait()
            self.arriving = None

    @property
    def is_full(self) -> bool:
        """Whether every weight has its gradient of the last micro-batch."""
        return all(slot.arrived for slot in self.slots)


class Buckets:
    """The buckets of one model chunk: begin, backward, begin, backward, ..., finish.

    With `overlap`, the reduction of a bucket starts when all its gradients of the last micro-batch have arrived and all
    earlier buckets have started, so that all ranks start them in the same order, as collectives require. The buckets of
    weights that are used twice are reduced in `finish`.
    """

    def __init__(
        self, buckets: Sequence[Bucket], reduce: Callable[[Bucket], Pending], overlap: bool
    ):
        self.buckets = list(buckets)
        self.reduce = reduce
        self.slots = [slot for bucket in buckets for slot in bucket.slots]
        self.last = False
        self.waiting: list[Bucket] = []  # those to reduce during backward, in this order
        self.finished = True
        if overlap:
            for slot in self.slots:
                slot.tell = self._arrive

    def begin(self, last: bool) -> None:
        """Called before the backward of a micro-batch; `last`: it is the last one of this chunk in the step."""
        if self.finished:
            self._renew()
        self.last = last

    def finish(self) -> None:
        """Starts the reductions that have not started yet."""
        for slot in self.slots:
            if slot.fresh:  # not used in this step
                slot.main.zero_()
        for bucket in self.buckets:
            if bucket.pending is None:
                self._start(bucket)
        self.finished = True

    def wait(self) -> None:
        """Waits until all reductions have ended."""
        for bucket in self.buckets:
            if bucket.pending is not None:
                bucket.pending.wait()

    def _renew(self) -> None:
        for slot in self.slots:
            slot.fresh = True
            slot.arrived = False
        for bucket in self.buckets:
            bucket.pending = None
        self.waiting = [bucket for bucket in self.buckets if not bucket.plan.alone]
        self.finished = False

    def _arrive(self, slot: GradSlot) -> None:
        if not self.last or slot.bucket.plan.alone:
            return
        if slot.arrived:
            raise RuntimeError(
                f"{slot.name} got a second gradient in one micro-batch, maybe after its reduction "
                "began: if a weight is used twice, register it under both names"
            )
        slot.arrived = True
        while self.waiting and self.waiting[0].is_full:
            self._start(self.waiting.pop(0))

    def _start(self, bucket: Bucket) -> None:
        for other in self.buckets:  # frees the memory of finished reductions for this one
            if other.pending is not None and other.pending.is_done:
                other.pending.wait()
        fault_point("gradient.reduce", bucket.grads)
        bucket.pending = self.reduce(bucket)
