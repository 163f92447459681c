"""The kind of device for which a tensor's kernels are chosen: its own; in a dry run, for a meta tensor, the target's.

In a dry run no tensor has memory, but what a layer allocates must be what it allocates on the target. So code asks
`device_kind(x)` where it would ask for ``x.device.type``; on a real device the answer is the same.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

DeviceKind = Literal["cpu", "cuda", "mps"]


class ImitatesDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode under which operations on meta tensors take the paths of a kind of device."""

    def __init__(self, kind: DeviceKind):
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_kind = kind
        self.launched: Callable[[str], None] | None = None  # called with the name of each kernel


def device_kind(x: Tensor) -> str:
    """``x.device.type``; for a meta tensor the kind that the innermost `ImitatesDevice` imitates, if there is one."""
    if not x.is_meta:
        return x.device.type
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, ImitatesDevice):
            return mode.device_kind
    return "meta"


def widest_dtype(device: torch.device) -> torch.dtype:
    """The type in which numbers of many tensors are added up: fp64, or fp32 on Apple's MPS, which has no fp64."""
    kind = device.type
    if kind == "meta":
        kind = device_kind(torch.empty(0, device=device))
    return torch.float32 if kind == "mps" else torch.float64


def note_launch(kernel: str) -> None:
    """Says that a kernel of ours would be launched now, if it were not for the meta device."""
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, ImitatesDevice) and mode.launched is not None:
            mode.launched(kernel)
            return


def is_imitated(*tensors: Tensor) -> bool:
    """Whether the tensors are a target's in a dry run: they have no memory, and nothing may be launched for them."""
    return all(tensor.is_meta and device_kind(tensor) != "meta" for tensor in tensors)
