"""A stream puts every byte on the disk in its order, whatever the file system knows, and tells each error."""

import errno
import os
import resource
import signal
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from megascratch.checkpoint.backend import direct_writer as module
from megascratch.checkpoint.backend.direct_writer import BLOCK, DirectWriter

PIECES = {
    "nothing": [],
    "one byte": [1],
    "one block": [BLOCK],
    "a room less a byte": [4 * BLOCK - 1],
    "a room": [4 * BLOCK],
    "a room in three": [100, 4 * BLOCK - 101, 1],
    "rooms and an odd end": [5, 11 * BLOCK, 0, 3, 9 * BLOCK + 17],
}


@pytest.fixture(autouse=True)
def small_rooms(monkeypatch):
    monkeypatch.setattr(module, "BUFFER_BYTES", 4 * BLOCK)


def written(folder: Path, sizes: list[int]) -> tuple[bytes, bytes]:
    content = np.random.default_rng(sum(sizes)).bytes(sum(sizes))
    ends = np.cumsum(sizes, dtype=int)
    with DirectWriter(folder / "file") as stream:
        for size, end in zip(sizes, ends, strict=True):
            stream.put(memoryview(content)[end - size : end])
        stream.finish()
    return (folder / "file").read_bytes(), content


@pytest.mark.parametrize("sizes", PIECES.values(), ids=PIECES)
def test_every_byte_is_there_and_no_other(tmp_path, sizes):
    there, content = written(tmp_path, sizes)
    assert there == content


def test_a_file_system_without_direct_writes_gets_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    there, content = written(tmp_path, PIECES["rooms and an odd end"])
    assert there == content


def test_a_disk_that_refuses_the_blocks_gets_them_another_way(tmp_path, monkeypatch):
    refusals, pwrite = chain([True], repeat(False)), os.pwrite

    def refuses_once(handle: int, part: memoryview, offset: int) -> int:
        if next(refusals):
            raise OSError(errno.EINVAL, "no such blocks")
        return pwrite(handle, part, offset)

    monkeypatch.setattr(os, "pwrite", refuses_once)
    there, content = written(tmp_path, PIECES["rooms and an odd end"])
    assert there == content


def test_a_disk_that_takes_only_a_part_gets_the_rest(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda handle, part, at: pwrite(handle, part[: max(1, len(part) // 3)], at)
    )
    there, content = written(tmp_path, PIECES["rooms and an odd end"])
    assert there == content


@pytest.mark.parametrize("sizes", [[2 * BLOCK], [40 * BLOCK]], ids=["at the end", "long before it"])
def test_an_error_of_the_disk_is_the_callers(tmp_path, sizes):
    limits, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            written(tmp_path, sizes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
