"""Raw bytes of tensors, checksums, and reads of file ranges, with as few copies as possible.

Hashing and reading release the GIL, so several threads read: one hashes while another waits for the disk. An error in
any thread is raised in the caller.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

THREADS = 4
T = TypeVar("T")
R = TypeVar("R")


def checksum(raw: bytes | bytearray | memoryview) -> int:
    """The 64-bit XXH3 hash."""
    return xxh3_64_intdigest(raw)


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, on the CPU; a view of its own memory if possible."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # one element counts as contiguous whatever its stride says
    flat = flat.as_strided(flat.shape, (1,))
    return flat.view(torch.uint8).numpy().data


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> list[R]:
    """The results in order. Raises: the first error, after running items have ended; the others are cancelled."""
    if threads == 1:
        return list(map(work, items))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="checkpoint")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


def read_all(handle: int, parts: Sequence[memoryview], offset: int) -> int:
    """Fills the parts one after the other. Returns the bytes read, fewer if the file ends. Raises: OSError."""
    left = list(parts)
    done = 0
    while left and (got := os.preadv(handle, left, offset + done)):
        done += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if left:
            left[0] = left[0][got:]
    return done
