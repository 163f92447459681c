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
from megascratch.optim.adamw import AdamW


class _OffloadedShard(NamedTuple):
    """A shard in host memory."""

    owned: OptimizerShard
    adamw: AdamW
    staged: Tensor  # the new weights in the type of the model, to be copied to the device


class ShardedOptimizer:
    """Updates all shards of a rank."""

    def __init__(self, ranges: Sequence[OptimizerShard], optim: OptimConfig):
        self.resident = [owned for owned in ranges if not owned.in_host_memory]
        self.adamw = AdamW([stretch for owned in self.resident for stretch in owned.stretches()], optim)
        self.pieces = [_piece(owned, optim) for owned in ranges if owned.in_host_memory]
        on_cuda = [piece.owned.weights.device for piece in self.pieces if piece.owned.weights.is_cuda]
        self.device = on_cuda[0] if on_cuda else None
        self.down, self.up = (torch.cuda.Stream(self.device) if on_cuda else None for _ in range(2))

    @property
    def steps(self) -> int:
        """Updates so far: Adam's bias correction depends on them."""
        return self.adamw.steps

    @steps.setter
    def steps(self, taken: int) -> None:
        for adamw in (self.adamw, *(piece.adamw for piece in self.pieces)):
            adamw.steps = taken

    @torch.no_grad()
    def __call__(self, lr: float) -> None:
        """One update at learning rate `lr`."""
        arrivals = [self._bring_down(piece) for piece in self.pieces]
        self.adamw.step(lr)
        for owned in self.resident:
            if owned.has_masters:
                owned.weights.copy_(owned.master)
        for piece, arrived in zip(self.pieces, arrivals, strict=True):
            if arrived is not None:
                arrived.synchronize()
            piece.adamw.step(lr)
            self._send_up(piece)
        if self.up is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.up)

    def _bring_down(self, piece: _OffloadedShard) -> torch.cuda.Event | None:
        """Starts to copy the gradients to the host. Returns the event of its end; None without CUDA."""
        if self.down is not None:
            self.down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.down):
            piece.owned.step_grads.copy_(piece.owned.grads, non_blocking=True)
        return None if self.down is None else self.down.record_event()

    def _send_up(self, piece: _OffloadedShard) -> None:
        if piece.owned.has_masters:
            piece.staged.copy_(piece.owned.master)
        with torch.cuda.stream(self.up):
            piece.owned.weights.copy_(piece.staged, non_blocking=True)


def _piece(owned: OptimizerShard, optim: OptimConfig) -> _OffloadedShard:
    staged = host_like(owned.weights) if owned.has_masters else owned.master
    return _OffloadedShard(owned, AdamW(list(owned.stretches()), optim), staged)
