"""Chunks in memory in, bytes and checksums out, and bytes of a file back; each is touched as seldom as can be.

Hashing and reading free the interpreter's lock, so several threads read: one hashes while another waits for the disk.
An error in any thread is the caller's error.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from xxhash import xxh3_64_hexdigest

THREADS = 4
T = TypeVar("T")
R = TypeVar("R")


def checksum(raw: bytes | bytearray | memoryview) -> str:
    """XXH3 of 64 bits as 16 hex digits."""
    return xxh3_64_hexdigest(raw)


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, on the CPU; its own memory where it already lies so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one element counts as contiguous whatever its stride says
    return flat.view(torch.uint8).numpy().data


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> list[R]:
    """The results in order. Raises: the first error, after what had begun has ended and nothing else has."""
    if threads == 1:
        return list(map(work, items))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="checkpoint")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


def read_all(handle: int, parts: Sequence[memoryview], offset: int) -> int:
    """Fills the parts, one behind the other; the bytes that there were, fewer where the file ends. Raises: OSError."""
    left, done = list(parts), 0
    while left and (got := os.preadv(handle, left, offset + done)):
        done += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if left:
            left[0] = left[0][got:]
    return done
