"""Bytes in their order in, a new file on the disk out, past the system's memory where the file system knows the way.

What goes through the system's memory is copied there, crowds out what training reads, and makes the writer wait at
moments that the system chooses. Here one thread brings a full room to the disk while the caller fills the other.
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
"""Offsets, lengths and addresses of direct writes are multiples of it; no common disk asks for more."""
ROOM = 1 << 23
"""Bytes of a write; the host memory of a stream is twice as much."""


class DirectWriter:
    """Open from the first byte to the last. Every method may raise the OSError of an earlier write."""

    def __init__(self, path: Path):
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._go_direct(True)
        self._rooms = [np.frombuffer(mmap.mmap(-1, ROOM), np.uint8) for _ in range(2)]  # at the start of a page
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._under_way: Future[None] | None = None
        self._filled = self._sent = 0

    def put(self, part: memoryview) -> None:
        """Takes a copy of the next bytes."""
        source, done = np.frombuffer(part, np.uint8), 0
        while done < len(source):
            taken = min(len(source) - done, ROOM - self._filled)
            np.copyto(self._rooms[0][self._filled : self._filled + taken], source[done : done + taken])
            self._filled, done = self._filled + taken, done + taken
            if self._filled == ROOM:
                self._send(ROOM)

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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()
        os.close(self._handle)

    def _send(self, nbytes: int) -> None:
        """The filled room goes on its way when the other has arrived."""
        self._wait()
        self._under_way = self._thread.submit(self._write, self._rooms[0][:nbytes].data, self._sent)
        self._rooms.reverse()
        self._filled, self._sent = 0, self._sent + nbytes

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()

    def _write(self, room: memoryview, offset: int) -> None:
        try:
            write_all(self._handle, room, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._go_direct(False)  # this disk has larger blocks, or took a part of the room that ends inside of one
            write_all(self._handle, room, offset)

    def _go_direct(self, on: bool) -> None:
        flag = getattr(os, "O_DIRECT", 0)
        flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._handle, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
        except OSError:  # a file system without direct writes, e.g. one in memory
            if not on:
                raise


def write_all(handle: int, part: memoryview, offset: int) -> None:
    """Raises: OSError, also where the disk takes only a part."""
    while part:
        written = os.pwrite(handle, part, offset)
        part, offset = part[written:], offset + written
