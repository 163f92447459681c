"""A GPU's tensors over gloo, which moves host memory only: a copy down before, a copy up after.

So ranks may share a device, which NCCL does not let them, and a single GPU can prove every layout. Each rank waits for
its device at each message: for proofs, not for speed.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def transport_device(device: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    """Where a group takes the tensors of `device` from."""
    through_host = device.type != "cpu" and group is not None and dist.get_backend(group) == "gloo"
    return torch.device("cpu") if through_host else device


def needs_host_staging(x: Tensor, group: dist.ProcessGroup | None) -> bool:
    return transport_device(x.device, group) != x.device


class HostTransfer:
    """A message whose tensor lies on a device."""

    def __init__(self, tensor: Tensor, peer: int, group: dist.ProcessGroup, outwards: bool):
        self.tensor, self.outwards = tensor, outwards
        self.host = tensor.cpu() if outwards else torch.empty_like(tensor, device="cpu")
        work = dist.isend(self.host, peer, group=group) if outwards else dist.irecv(self.host, peer, group=group)
        assert work is not None  # None only for a rank outside the group
        self.work = work

    def wait(self) -> None:
        """Until it has gone out, or is on the device."""
        self.work.wait()
        if not self.outwards:
            self.tensor.copy_(self.host)

    def is_completed(self) -> bool:
        """Whether `wait` would return at once; gloo does not tell of sends."""
        return self.work.is_completed()
