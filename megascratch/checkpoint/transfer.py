"""Chunks in memory in, bytes and checksums in a file out, and the reverse; each byte is touched as seldom as can be.

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
    pool = ThreadPoolExecutor(threads, thread_name_prefix="checkpoint")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


def write_all(handle: int, parts: Sequence[memoryview], offset: int) -> None:
    """Writes the parts one behind the other. Raises: OSError, also where the disk takes only a part."""
    left = [part for part in parts if len(part)]
    while left:
        written = os.pwritev(handle, left, offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if left:
            left[0] = left[0][written:]


def begin_writeback(handle: int, offset: int, nbytes: int) -> None:
    """Starts to bring written bytes to the disk, where the system can be told so: pages that are not yet there are
    not dropped by this advice, but sent."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, offset, nbytes, os.POSIX_FADV_DONTNEED)


def read_all(handle: int, into: memoryview, offset: int) -> int:
    """Fills `into`; the bytes that there were, fewer where the file ends."""
    done = 0
    while done < len(into):
        got = os.preadv(handle, [into[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done
