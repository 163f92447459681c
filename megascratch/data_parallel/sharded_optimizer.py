"""Updates the optimizer shards of a rank, on the device or, if offloaded, on the CPU (ZeRO-Offload).

An offloaded shard is updated by the CPU in host memory. Its gradients are copied down and its weights up on separate
streams, shard by shard, so that on CUDA the copies of one shard overlap with the update of another (Ren et al. 2021,
ZeRO-Offload, arXiv 2101.06840, section 4.2). On a CPU the same code copies from memory to memory.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.config.layout import Layout
from megascratch.config.settings import OptimConfig
from megascratch.data_parallel.buckets import Bucket
from megascratch.data_parallel.optimizer_shard import OptimizerShard, host_like
from megascratch.optim import optimizer_kind
from megascratch.optim.optimizer import Optimizer, Stretch
from megascratch.optim.schedules import NO_OTHERS, OtherRates
from megascratch.parallel.shard import Shard


class _OffloadedShard(NamedTuple):
    """A shard in host memory."""

    owned: OptimizerShard
    optimizer: Optimizer
    staged: Tensor  # the new weights in the type of the model, to be copied to the device


class ShardedOptimizer:
    """Updates all shards of a rank."""

    def __init__(
        self, ranges: Sequence[OptimizerShard], shards: Mapping[str, Shard], optim: OptimConfig
    ):
        self.resident: list[OptimizerShard] = []  # on the device
        self.offloaded: list[_OffloadedShard] = []
        kind = optimizer_kind(optim)
        stretches: list[Stretch] = []
        decoupled: list[Stretch] = []
        for owned in ranges:
            mine = owned.stretches()
            if kind.needs_whole_matrices:
                mine = owned.whole_weights(shards)
            if owned.in_host_memory:
                staged = host_like(owned.weights) if owned.has_masters else owned.master
                self.offloaded.append(_OffloadedShard(owned, kind.make(list(mine), optim), staged))
            else:
                self.resident.append(owned)
                if owned.bucket.plan.decoupled:
                    decoupled += mine
                else:
                    stretches += mine
        self.optimizer = kind.make(stretches, optim)
        self.decoupled: Optimizer | None = (
            None  # of the resident weights with the decoupled learning rate
        )
        if decoupled:
            self.decoupled = kind.make(decoupled, optim)
        self.device: torch.device | None = (
            None  # of the weights of offloaded shards, if that is a GPU
        )
        self.down: torch.cuda.Stream | None = None
        self.up: torch.cuda.Stream | None = None
        if self.offloaded and self.offloaded[0].owned.weights.is_cuda:
            self.device = self.offloaded[0].owned.weights.device
            self.down = torch.cuda.Stream(self.device)
            self.up = torch.cuda.Stream(self.device)

    @property
    def steps(self) -> int:
        """Updates so far, restored with the state: what an optimizer does may depend on them."""
        return self.optimizer.steps

    @steps.setter
    def steps(self, taken: int) -> None:
        for optimizer in self._optimizers():
            optimizer.steps = taken

    def _optimizers(self) -> list[Optimizer]:
        found = [self.optimizer]
        if self.decoupled is not None:
            found.append(self.decoupled)
        return found + [shard.optimizer for shard in self.offloaded]

    @torch.no_grad()
    def __call__(self, lr: float, others: OtherRates = NO_OTHERS) -> None:
        """One update at learning rate `lr`; the weights with a decoupled rate at that of `others`, if it has one."""
        decoupled_lr = lr if others.decoupled_lr is None else others.decoupled_lr
        if others.weight_decay is not None:
            for optimizer in self._optimizers():
                optimizer.set_weight_decay(others.weight_decay)
        arrivals = [self._bring_down(shard) for shard in self.offloaded]
        self.optimizer.step(lr)
        if self.decoupled is not None:
            self.decoupled.step(decoupled_lr)
        for owned in self.resident:
            if owned.has_masters:
                owned.weights.copy_(owned.master)
        for shard, arrived in zip(self.offloaded, arrivals, strict=True):
            if arrived is not None:
                arrived.synchronize()
            shard.optimizer.step(decoupled_lr if shard.owned.bucket.plan.decoupled else lr)
            self._send_up(shard)
        if self.up is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.up)

    def _bring_down(self, shard: _OffloadedShard) -> torch.cuda.Event | None:
        """Starts to copy the gradients to the host. Returns the event of its end; None without CUDA."""
        if self.down is not None:
            self.down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.down):
            shard.owned.step_grads.copy_(shard.owned.grads, non_blocking=True)
        return None if self.down is None else self.down.record_event()

    def _send_up(self, shard: _OffloadedShard) -> None:
        """Starts to copy the new weights to the device."""
        if shard.owned.has_masters:
            shard.staged.copy_(shard.owned.master)
        with torch.cuda.stream(self.up):
            shard.owned.weights.copy_(shard.staged, non_blocking=True)


def require_whole_matrices(
    name: str,
    shards: Mapping[str, Shard],
    layout: Layout,
    ranges: Sequence[tuple[Bucket, int, int]],
) -> None:
    """Returns if no rank holds a part of a matrix: an optimizer that needs all of it has no owner for it otherwise.

    Args:
        name: of the optimizer.
        shards: the table of the whole model.
        ranges: (bucket, start, stop) that this rank updates.

    Raises: ValueError, on every rank that holds weights.
    """
    reason = ""
    for weight, shard in shards.items():
        for cut in shard.cuts:
            ranks = layout.sizes(shard.view)[cut.axis]
            # the dims before the last two count matrices, such as the experts of a layer
            in_matrix = len(shard.shape) > 1 and cut.dim >= len(shard.shape) - 2
            if ranks > 1 and in_matrix:
                reason = f"{weight} is cut over {ranks} ranks of {cut.axis}: use 1"
    if any((start, stop) != (0, bucket.plan.size) for bucket, start, stop in ranges):
        reason = "the ranges of use-distributed-optimizer begin and end inside them: leave it out"
    if reason:
        raise ValueError(f"optimizer {name} updates whole matrices, but {reason}")
