"""Chooses the device and the precision of a run, and measures the matmul peak (for MFU) and the memory in use."""

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from megascratch.config.errors import UserError
from megascratch.config.settings import OptimConfig
from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_reduce, barrier
from megascratch.parallel.device_kind import widest_dtype

_TRIM_THRESHOLD = -1  # malloc.h
_MMAP_THRESHOLD = -3
_STATM = Path("/proc/self/statm")


def choose_device(asked: str | None, local_rank: int, backend: str | None = None) -> torch.device:
    """The device of a rank.

    Args:
        asked: 'cpu', 'cuda', 'mps', or None for cuda if there is any. On cuda each local rank gets a device of its
            own.
        backend: with 'gloo', several ranks may share a device.

    Raises:
        UserError: there is no device of the kind that is asked for, or there are fewer than ranks on this machine.
    """
    kind = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                f"--device mps needs Apple's MPS, which PyTorch {torch.__version__} does not have on this machine: "
                "use --device cpu"
            )
        return torch.device("mps")
    count = torch.cuda.device_count()
    if count == 0:
        raise UserError(
            "--device cuda: this machine has no CUDA device that torch can use: use --device cpu"
        )
    if local_rank >= count and backend != "gloo":
        raise UserError(
            f"local rank {local_rank} needs a CUDA device of its own and this machine has {count}: "
            f"start {count} process{'' if count == 1 else 'es'} here, or use --device cpu"
        )
    device = torch.device("cuda", local_rank % count)
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory at the top of its heap for the next step.

    By default glibc returns memory to the system as soon as more than twice the largest tensor freed so far is unused,
    and every step allocates the same pages again: a small model spends 2 to 4 % of its time on that. With another C
    library this function does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # glibc's own upper limit; larger blocks are still returned at once
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 1 << 30)


def parameter_dtype(optim: OptimConfig) -> torch.dtype:
    """The precision of the weights in forward and backward."""
    if optim.fp64:
        return torch.float64
    if optim.bf16:
        return torch.bfloat16
    return torch.float16 if optim.fp16 else torch.float32


def matmul_peak(
    world: Axis, device: torch.device, dtype: torch.dtype, seconds: float = 0.4
) -> float:
    """FLOP/s of all ranks together, while each multiplies square matrices: the peak that MFU is relative to. Ranks that
    share cores share the peak."""
    n = 4096 if device.type == "cuda" else 512
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    torch.mm(a, b)
    barrier(world)
    count = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        count += 1
    operations = 2 * n**3 * count
    rate = torch.tensor(operations / elapsed, dtype=widest_dtype(device), device=device)
    return all_reduce(rate, world).item()


class Peak:
    """The rate of operations that MFU is relative to: the matmul peak, unless the run itself turns out to be faster,
    because the machine had other work to do while the peak was measured. So MFU never exceeds 100 %.

    Args:
        rate: the measured peak, in FLOP/s.
    """

    def __init__(self, rate: float):
        self.rate = rate
        self._measured = rate

    def mfu(self, rate: float, say: Callable[[str], None]) -> float:
        """Model FLOPs utilisation of a run that computes at this rate, in FLOP/s. The first time that the rate is
        above the measured peak is reported."""
        if rate > self.rate:
            if self.rate == self._measured:
                say(
                    f"notice: the model computes at {rate / 1e9:,.0f} GFLOP/s, above the matmul peak measured at the "
                    f"start ({self.rate / 1e9:,.0f}), when the machine had other work to do: from now on MFU is "
                    "relative to the best rate of this run"
                )
            self.rate = rate
        return rate / self.rate


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Memory(NamedTuple):
    """Bytes that a rank has: of the allocator of torch on a GPU, of the process elsewhere."""

    allocated: int  # in use; of a process: resident
    reserved: int  # with what the allocator keeps for later; of a process: its address space
    most_allocated: int
    most_reserved: int
    blocks: int  # allocations in use; of a process: those of the interpreter


def memory_in_use(device: torch.device) -> Memory:
    """The memory of this rank now. A system without /proc has only the peak of a process."""
    if device.type == "cuda":
        numbers = torch.cuda.memory_stats(device)
        return Memory(
            numbers["allocated_bytes.all.current"],
            numbers["reserved_bytes.all.current"],
            numbers["allocated_bytes.all.peak"],
            numbers["reserved_bytes.all.peak"],
            numbers["allocation.all.current"],
        )
    most = peak_memory(device)
    try:
        whole, resident, *_ = _STATM.read_text().split()
    except OSError:
        whole = resident = "0"
    page = resource.getpagesize()
    resident_bytes = int(resident) * page or most
    address_space = int(whole) * page or most
    most = max(most, resident_bytes)
    return Memory(resident_bytes, address_space, most, address_space, sys.getallocatedblocks())
