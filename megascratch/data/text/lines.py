"""Blocks of bytes in, whole lines out, in memory that neither a long line nor a compressed bomb can fill.

A part [start, stop) of a file has the lines that begin in it, so parts that meet have each line once.
"""

from collections.abc import Iterator
from typing import IO

BLOCK_BYTES = 1 << 20


def stream(file: IO[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """A file to its end. What comes before a fault is given before it is raised (`read` would lose it)."""
    while block := file.read1(size):  # type: ignore[attr-defined]
        yield block


def at_most(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes."""
    for block in blocks:
        yield block[:size]
        size -= len(block)
        if size <= 0:
            return


def part(file: IO[bytes], start: int, stop: int, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The lines that begin in [start, stop) of a file, cut anywhere."""
    at = _first_line(file, start, stop, size)
    file.seek(at)
    block = b""
    while at < stop and (block := file.read(min(size, stop - at))):
        at += len(block)
        yield block
    while block and not block.endswith(b"\n") and (block := file.read(size)):  # the last line runs over the end
        end = block.find(b"\n") + 1
        block = block[:end] if end else block
        yield block


def _first_line(file: IO[bytes], start: int, stop: int, size: int) -> int:
    """Where the first line at or after `start` begins; not before `stop`: there is none."""
    if start == 0:
        return 0
    at = start - 1  # a line end here makes `start` a beginning
    file.seek(at)
    while at < stop and (block := file.read(size)):
        end = block.find(b"\n") + 1
        if end:
            return at + end
        at += len(block)
    return stop


def whole_lines(blocks: Iterator[bytes], longest: int) -> Iterator[bytes]:
    """The same bytes in blocks that end with a line; a line over `longest` bytes keeps `longest` + 1 of them or more.

    A longer line is so still told by its length, and never held.
    """
    held: list[bytes] = []
    room = longest + 1
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            first = block.index(b"\n")
            held += [block[: min(first, room)], block[first:end]]
            room = longest + 1
            yield _taken(held)
        rest = block[end : end + room]
        if rest:
            held.append(rest)
            room -= len(rest)
    if held:
        yield _taken(held)


def _taken(held: list[bytes]) -> bytes:
    """All of them as one, and the list is empty: a long line must not lie in memory twice while it is worked on."""
    whole = b"".join(held)
    held.clear()
    return whole
