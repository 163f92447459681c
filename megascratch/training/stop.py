"""A request to stop (SIGTERM, SIGINT) becomes one decision of all ranks, at a step's end, never inside it."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.mesh import Axis


class StopRequest:
    """Catches SIGTERM and the first SIGINT; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self, world: Axis, device: torch.device) -> bool:
        """True on all ranks as soon as one was asked."""
        flag = torch.tensor(float(self.asked), device=device)
        return bool(all_reduce(flag, world, dist.ReduceOp.MAX).item())

    def release(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
