"""What the machine can do and what the run uses of it: measured matmul peak, memory, device and precision."""

import ctypes
import resource
import sys
import time

import torch

from megascratch.config.errors import UserError
from megascratch.config.settings import OptimConfig
from megascratch.parallel.collectives import all_reduce, barrier
from megascratch.parallel.mesh import Axis

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(asked: str | None, local_rank: int, backend: str | None = None) -> torch.device:
    """`asked`, or cuda if there is one; on cuda each local rank gets its own, or with `backend` gloo its share of one.

    Raises:
        UserError: cuda is asked for and there is none, or there are fewer devices than ranks on this machine.
    """
    kind = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count and (backend != "gloo" or count == 0):
        raise UserError(
            f"local rank {local_rank} needs a CUDA device of its own and this machine has {count}: "
            f"start {max(count, 1)} processes here, or use --device cpu"
        )
    device = torch.device("cuda", local_rank % count)
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed at the top of its heap for the next step.

    On its own it gives memory back to the system as soon as there is more of it than twice the largest tensor freed so
    far, and every step asks for the same pages again: a small model spends 2 to 4 % of its time on that. Where the C
    library is another one nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # what it comes to by itself at the most; larger ones still go back at once
        mallopt(_TRIM_THRESHOLD, 1 << 30)


def parameter_dtype(optim: OptimConfig) -> torch.dtype:
    if optim.fp64:
        return torch.float64
    return torch.bfloat16 if optim.bf16 else torch.float16 if optim.fp16 else torch.float32


def matmul_peak(world: Axis, device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """FLOP/s of all ranks together, each multiplying square matrices at the same time: the roof that MFU is told
    against. Ranks that share cores share the roof."""
    n = 4096 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    barrier(world)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
    rate = torch.tensor(2 * n**3 * count / elapsed, dtype=torch.float64, device=device)
    return all_reduce(rate, world).item()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU, or the most that this process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
