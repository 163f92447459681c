"""Updates the optimizer shards of a rank with AdamW, on the device or, if offloaded, on the CPU (ZeRO-Offload).

An offloaded shard is updated by the CPU in host memory. Its gradients are copied down and its weights up on separate
streams, shard by shard, so that on CUDA the copies of one shard overlap with the update of another (Ren et al. 2021,
ZeRO-Offload, arXiv 2101.06840, section 4.2). On a CPU the same code copies from memory to memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.config.settings import OptimConfig
from megascratch.data_parallel.optimizer_shard import OptimizerShard, host_like
from megascratch.optim.adamw import AdamW, FlatParamGroup


class _OffloadedShard(NamedTuple):
    """A shard in host memory."""

    owned: OptimizerShard
    adamw: AdamW
    staged: Tensor  # the new weights in the type of the model, to be copied to the device


class ShardedOptimizer:
    """Updates all shards of a rank."""

    def __init__(self, ranges: Sequence[OptimizerShard], optim: OptimConfig):
        self.resident: list[OptimizerShard] = []  # on the device
        self.offloaded: list[_OffloadedShard] = []
        stretches: list[FlatParamGroup] = []
        for owned in ranges:
            if owned.in_host_memory:
                self.offloaded.append(_offloaded(owned, optim))
            else:
                self.resident.append(owned)
                stretches += owned.stretches()
        self.adamw = AdamW(stretches, optim)
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
        """Updates so far: Adam's bias correction depends on them."""
        return self.adamw.steps

    @steps.setter
    def steps(self, taken: int) -> None:
        self.adamw.steps = taken
        for shard in self.offloaded:
            shard.adamw.steps = taken

    @torch.no_grad()
    def __call__(self, lr: float) -> None:
        """One update at learning rate `lr`."""
        arrivals = [self._bring_down(shard) for shard in self.offloaded]
        self.adamw.step(lr)
        for owned in self.resident:
            if owned.has_masters:
                owned.weights.copy_(owned.master)
        for shard, arrived in zip(self.offloaded, arrivals, strict=True):
            if arrived is not None:
                arrived.synchronize()
            shard.adamw.step(lr)
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


def _offloaded(owned: OptimizerShard, optim: OptimConfig) -> _OffloadedShard:
    staged = host_like(owned.weights) if owned.has_masters else owned.master
    return _OffloadedShard(owned, AdamW(list(owned.stretches()), optim), staged)
