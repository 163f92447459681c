"""Sends GPU tensors through host memory, because gloo only moves host memory: a copy to the host before, a copy to the
device after.

With it several ranks can share a device, which NCCL refuses, so every layout can be tested on a single GPU. Each rank
waits for its device at each message: use it for tests, not for speed.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def transport_device(device: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    """The device from which a group sends tensors of `device`: the CPU for a GPU over gloo, otherwise the device."""
    through_host = device.type != "cpu" and group is not None and dist.get_backend(group) == "gloo"
    return torch.device("cpu") if through_host else device


def needs_host_staging(x: Tensor, group: dist.ProcessGroup | None) -> bool:
    return transport_device(x.device, group) != x.device


class HostTransfer:
    """A send or receive of a tensor on a device, through a copy in host memory."""

    def __init__(self, tensor: Tensor, peer: int, group: dist.ProcessGroup, outwards: bool):
        self.tensor = tensor
        self.outwards = outwards
        self.host = tensor.cpu() if outwards else torch.empty_like(tensor, device="cpu")
        work = (
            dist.isend(self.host, peer, group=group)
            if outwards
            else dist.irecv(self.host, peer, group=group)
        )
        assert work is not None  # None only for a rank outside the group
        self.work = work

    def wait(self) -> None:
        """Waits until the tensor has been sent, or has been received and copied to the device."""
        self.work.wait()
        if not self.outwards:
            self.tensor.copy_(self.host)

    def is_completed(self) -> bool:
        """Whether `wait` would return at once; gloo does not report this for sends."""
        return self.work.is_completed()
