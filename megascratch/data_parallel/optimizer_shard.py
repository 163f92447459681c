"""The shard of the optimizer that a rank owns in a bucket: weights, fp32 masters, gradients and state of one range.

The masters and the state are on the device, or offloaded to host memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megascratch.data_parallel.bucket_layout import ParamRange
from megascratch.data_parallel.buckets import Bucket
from megascratch.optim.optimizer import Stretch
from megascratch.parallel.shard import Shard

HOST = torch.device("cpu")


@dataclass(frozen=True)
class OptimizerShard:
    """The range [start, stop) of a bucket that this rank updates; all tensors have its length.

    The optimizer works on `master`, `step_grads` and the `state`. On the device `step_grads` is `grads`, and `master`
    is `weights` if these are fp32 or fp64 already; in host memory all of them are separate tensors.
    """

    bucket: Bucket
    start: int
    stop: int
    weights: Tensor  # as the model computes with them
    grads: Tensor
    master: Tensor  # fp32 or fp64
    step_grads: Tensor
    state: Mapping[str, Tensor]  # by the optimizer's names
    in_host_memory: bool

    @classmethod
    def of(
        cls,
        bucket: Bucket,
        start: int,
        stop: int,
        state_names: Sequence[str],
        in_host_memory: bool = False,
    ) -> "OptimizerShard":
        weights = bucket.weights[start:stop]
        grads = bucket.grads[start:stop]
        if in_host_memory:
            master = host_like(grads)
            master.copy_(weights)
            step_grads = host_like(grads)
            state = {name: host_like(grads) for name in state_names}
        else:
            master = weights.to(grads.dtype)
            step_grads = grads
            state = {name: torch.zeros_like(grads) for name in state_names}
        return cls(bucket, start, stop, weights, grads, master, step_grads, state, in_host_memory)

    @property
    def has_masters(self) -> bool:
        """Whether the weights have lower precision than the masters, so that masters must be saved as well."""
        return self.master.dtype != self.weights.dtype

    @property
    def kinds(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint stores for a weight, by the prefix of their names."""
        kinds = {"param": self.weights}
        for name, tensor in self.state.items():
            kinds[f"optim.{name}"] = tensor
        if self.has_masters:
            kinds["optim.master"] = self.master
        return kinds

    def stretches(self) -> Iterator[Stretch]:
        """The part with weight decay and the part without."""
        decaying = self.bucket.plan.decay_end - self.start
        cut = min(max(decaying, 0), self.stop - self.start)
        for part, decays in ((slice(0, cut), True), (slice(cut, None), False)):
            state = {name: tensor[part] for name, tensor in self.state.items()}
            yield Stretch(self.master[part], self.step_grads[part], state, decays)

    def whole_weights(self, shards: Mapping[str, Shard]) -> Iterator[Stretch]:
        """Each weight for itself in its own shape, without padding; the range must be the whole bucket, and no rank
        may cut a weight."""
        for place, slot in zip(self.bucket.plan.places, self.bucket.slots, strict=True):
            box = tuple(slice(0, size) for size in shards[place.name].shape)
            whole = partial(_block, slice(place.start, place.stop), slot.main.shape, box)
            state = {name: whole(tensor) for name, tensor in self.state.items()}
            decays = place.start < self.bucket.plan.decay_end
            yield Stretch(whole(self.master), whole(self.step_grads), state, decays)

    def range_of(self, place: ParamRange) -> tuple[int, int]:
        """The elements of a parameter inside this range, counted from the first of the parameter; may be empty."""
        start = max(self.start - place.start, 0)
        stop = min(self.stop, place.stop) - place.start
        return start, max(start, stop)

    def loaded(self, masters: bool) -> None:
        """Called after the tensors of `kinds` were filled: computes the weights from the masters, or the reverse."""
        if masters and self.has_masters:
            self.weights.copy_(self.master)
        else:
            self.master.copy_(self.weights)


def _block(part: slice, shape: Sequence[int], box: tuple[slice, ...], flat: Tensor) -> Tensor:
    """The view of `box` in the tensor of `shape` that is `part` of a flat one."""
    return flat[part].view(*shape)[box]


def host_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros of its shape in host memory; pinned for a CUDA tensor, so that copies overlap with computation. For a meta
    tensor on the meta device."""
    device = tensor.device if tensor.is_meta else HOST
    return torch.zeros(
        tensor.shape, dtype=dtype or tensor.dtype, device=device, pin_memory=tensor.is_cuda
    )


def first_elements(lengths: Sequence[int], fraction: float) -> list[bool]:
    """For each range, whether it is among the first that together hold at least this fraction of all elements."""
    wanted = fraction * sum(lengths)
    before = 0
    chosen = []
    for length in lengths:
        chosen.append(before < wanted)
        before += length
    return chosen
