"""Sends GPU tensors through host memory, because gloo only moves host memory: a copy to the host before, a copy to the
device after.

With it several ranks can share a device, which NCCL refuses, so every layout can be tested on a single GPU. Each rank
waits for its device at each message: use it for tests, not for speed.
"""

import torch
from torch import Tensor

from megascratch.parallel.transport import Transport


def needs_host_staging(x: Tensor, transport: Transport | None) -> bool:
    return transport is not None and transport.carried_by(x.device) != x.device


class HostTransfer:
    """A send or receive of a tensor on a device, through a copy in host memory.

    Args:
        peer: the number of the other rank in the group.
    """

    def __init__(self, tensor: Tensor, peer: int, transport: Transport, outwards: bool):
        self.tensor = tensor
        self.outwards = outwards
        self.host = tensor.cpu() if outwards else torch.empty_like(tensor, device="cpu")
        start = transport.send if outwards else transport.receive
        self.work = start(self.host, peer)

    def wait(self) -> None:
        """Waits until the tensor has been sent, or has been received and copied to the device."""
        self.work.wait()
        if not self.outwards:
            self.tensor.copy_(self.host)

    def is_completed(self) -> bool:
        """Whether `wait` would return at once; gloo does not report this for sends."""
        return self.work.is_completed()
