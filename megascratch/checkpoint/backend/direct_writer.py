"""Writes a new file with direct I/O (O_DIRECT) where the file system supports it, bypassing the page cache.

Writes through the page cache cost a copy, evict the data that training reads, and stall at moments that the kernel
chooses. Here one thread writes a full buffer to the disk while the caller fills the other.
"""

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

BLOCK = 1 << 12
"""Offsets, lengths and addresses of direct writes are multiples of it; no common disk needs more."""
BUFFER_BYTES = 1 << 23
"""Bytes of one write; a writer has two such buffers."""


class DirectWriter:
    """Writes bytes in order. Every method may raise the OSError of an earlier write."""

    def __init__(self, path: Path):
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._go_direct(True)
        # page-aligned
        self._buffers = [np.frombuffer(mmap.mmap(-1, BUFFER_BYTES), np.uint8) for _ in range(2)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._under_way: Future[None] | None = None
        self._filled = 0  # bytes in the first buffer
        self._sent = 0  # bytes given to the thread

    def put(self, part: memoryview) -> None:
        """Copies the next bytes into the buffer, and starts a write whenever it is full."""
        source = np.frombuffer(part, np.uint8)
        done = 0
        while done < len(source):
            taken = min(len(source) - done, BUFFER_BYTES - self._filled)
            free = self._buffers[0][self._filled : self._filled + taken]
            np.copyto(free, source[done : done + taken])
            self._filled += taken
            done += taken
            if self._filled == BUFFER_BYTES:
                self._send(BUFFER_BYTES)

    def finish(self) -> None:
        """Returns when every byte is on the disk."""
        size = self._sent + self._filled
        if self._filled:
            self._send(-(-self._filled // BLOCK) * BLOCK)
        self._wait()
        os.ftruncate(self._handle, size)
        os.fsync(self._handle)

    def __enter__(self) -> "DirectWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        os.close(self._handle)

    def _send(self, nbytes: int) -> None:
        """Waits for the previous write, then starts to write the filled buffer."""
        self._wait()
        self._under_way = self._thread.submit(
            self._write, self._buffers[0][:nbytes].data, self._sent
        )
        self._buffers.reverse()
        self._filled = 0
        self._sent += nbytes

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()

    def _write(self, buffer: memoryview, offset: int) -> None:
        try:
            write_all(self._handle, buffer, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # the disk has larger blocks, or a short write ended inside a block
            self._go_direct(False)
            write_all(self._handle, buffer, offset)

    def _go_direct(self, on: bool) -> None:
        flag = getattr(os, "O_DIRECT", 0)
        flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
        flags = flags | flag if on else flags & ~flag
        try:
            fcntl.fcntl(self._handle, fcntl.F_SETFL, flags)
        except OSError:  # a file system without direct writes, e.g. one in memory
            if not on:
                raise


def write_all(handle: int, part: memoryview, offset: int) -> None:
    """Writes all of `part`, after a short write the rest. Raises: OSError."""
    while part:
        written = os.pwrite(handle, part, offset)
        part = part[written:]
        offset += written
