"""Cuts a byte stream into complete lines with bounded memory, whatever the length of a line.

A part [start, stop) of a file has the lines that begin in it, so adjacent parts have each line exactly once.
"""

from collections.abc import Iterator
from typing import IO

BLOCK_BYTES = 1 << 20


def stream(file: IO[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """A file to its end, in blocks. On a read error, the bytes before it are yielded first (`read` would lose them)."""
    while block := file.read1(size):  # type: ignore[attr-defined]
        yield block


def at_most(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes of the blocks."""
    for block in blocks:
        yield block[:size]
        size -= len(block)
        if size <= 0:
            return


def part(file: IO[bytes], start: int, stop: int, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The lines that begin in [start, stop) of a file, in blocks that may end anywhere in a line."""
    at = _first_line(file, start, stop, size)
    file.seek(at)
    block = b""
    while at < stop and (block := file.read(min(size, stop - at))):
        at += len(block)
        yield block
    while block and not block.endswith(b"\n") and (block := file.read(size)):
        # the last line runs over the end
        end = block.find(b"\n") + 1
        if end:
            block = block[:end]
        yield block


def _first_line(file: IO[bytes], start: int, stop: int, size: int) -> int:
    """Where the first line at or after `start` begins; `stop` or more: there is none."""
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
    """The same bytes in blocks that end at a line end; a line over `longest` bytes is cut to `longest` + 1 or more.

    So a line that is too long is still recognised by its length, but never held in memory.
    """
    held: list[bytes] = []
    room = longest + 1
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            first_end = block.index(b"\n")
            held.append(block[: min(first_end, room)])
            held.append(block[first_end:end])
            room = longest + 1
            yield _join_and_clear(held)
        rest = block[end : end + room]
        if rest:
            held.append(rest)
            room -= len(rest)
    if held:
        yield _join_and_clear(held)


def _join_and_clear(held: list[bytes]) -> bytes:
    """Joins the blocks and empties the list, so that a long line is not in memory twice while it is processed."""
    joined = b"".join(held)
    held.clear()
    return joined
