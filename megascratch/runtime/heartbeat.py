"""What a rank is doing, in one small file that it maps and others read: a supervisor sees it even when the rank hangs,
is stopped, or is dead.

    {folder}/{rank}.rank    1,024 bytes, little-endian:
    0    u32 process number      4    u32 flags: 1 judged, 2 waits, 4 ended
    8    f64 time.monotonic() of the last change
    16   i64 step                24   i32 exit code, when it has ended
    64   what it does            192  what it waits for
    448  the same of a background thread          704  the first line of the error that ended it

The variable MEGASCRATCH_WATCH names the folder; without it nothing is noted. Torch is not needed to read or write.
"""

import mmap
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

FOLDER = "MEGASCRATCH_WATCH"
STORE = "MEGASCRATCH_STORE"
"""Names the file through which the ranks of a launcher meet (meeting.py, which needs torch)."""
SIZE = 1024
JUDGED, WAITS, ENDED = 1, 2, 4
_HEAD = struct.Struct("<IIdqi")
_CODE = struct.Struct("<i")
_TEXTS = _ACTION, _AWAITED, _BACKGROUND, _ERROR = slice(64, 192), slice(192, 448), slice(448, 704), slice(704, 1024)


class Heartbeat(NamedTuple):
    """What one rank was doing when its file was read."""

    rank: int
    pid: int
    flags: int
    moved: float  # time.monotonic() of its last change
    step: int
    code: int
    action: str
    awaited: str
    background: str
    error: str

    @property
    def waits(self) -> bool:
        """In a communication, for other ranks."""
        return bool(self.flags & WAITS)

    @property
    def judged(self) -> bool:
        """Standing still too long is a hang: other ranks wait for it."""
        return bool(self.flags & JUDGED) and not self.ended

    @property
    def ended(self) -> bool:
        """It has told its exit code itself."""
        return bool(self.flags & ENDED)


def read(folder: str | Path) -> list[Heartbeat]:
    """All ranks of a folder that have written anything, by rank."""
    found = []
    for path in Path(folder).glob("*.rank"):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue  # the folder is just being deleted
        if len(raw) == SIZE and path.stem.isdigit():
            pid, flags, moved, step, code = _HEAD.unpack_from(raw)
            texts = (raw[place].rstrip(b"\0").decode(errors="replace") for place in _TEXTS)
            if pid:  # else it is just being made
                found.append(Heartbeat(int(path.stem), pid, flags, moved, step, code, *texts))
    return sorted(found)


def set_watched(on: bool = True) -> None:
    """From now on other ranks wait for this one; or, at the end, no longer."""
    if (mine := _mine()) is not None:
        mine.flag(JUDGED, on)


def at_step(step: int) -> None:
    """A step begins."""
    if (mine := _mine()) is not None:
        mine.at_step(step)


def doing(what: str) -> None:
    """The next thing that this rank does, e.g. an action of the schedule."""
    if (mine := _mine()) is not None:
        mine.note(_ACTION, what)


def numbered(axis: str) -> int:
    """The number of the next collective over an axis; where ranks disagree about it, one has left some out."""
    mine = _mine()
    return 0 if mine is None else mine.numbered(axis)


@contextmanager
def waiting(what: str, number: int = 0, ranks: Sequence[int] = ()) -> Iterator[None]:
    """Around a communication that returns when other ranks have come."""
    mine = _mine()
    if mine is None:
        yield
        return
    count = f" number {number}" if number else ""
    mine.waits(f"{what}{count}{_named(tuple(ranks))}")
    try:
        yield
    finally:
        mine.goes_on()


def ended(code: int, error: str = "") -> None:
    """The last word of a rank that ends by itself."""
    if (mine := _mine()) is not None:
        mine.ended(code, error)


@lru_cache(maxsize=256)
def _named(ranks: tuple[int, ...]) -> str:
    if not ranks:
        return ""
    return f" (ranks {' '.join(map(str, ranks[:16]))}{' ...' if len(ranks) > 16 else ''})"


class _Mine:
    """This rank's file, mapped; the main thread's words apart from those of the others."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)
        # One store each. struct would write zeros first, and a clock that reads 0 is that of a rank that hangs.
        whole = memoryview(self._memory)
        self._flags_there, self._moved, self._step = whole.cast("I"), whole.cast("d"), whole.cast("q")
        self._main, self._flags = threading.main_thread().ident, 0
        self._numbers: Counter[str] = Counter()
        _HEAD.pack_into(self._memory, 0, os.getpid(), 0, time.monotonic(), 0, 0)

    def flag(self, flag: int, on: bool = True) -> None:
        self._flags = self._flags | flag if on else self._flags & ~flag
        self._flags_there[1] = self._flags
        self._moved[1] = time.monotonic()

    def at_step(self, step: int) -> None:
        self._step[2] = step
        self._moved[1] = time.monotonic()

    def note(self, place: slice, text: str) -> None:
        if threading.get_ident() == self._main:
            self._write(place, text)
            self._moved[1] = time.monotonic()

    def numbered(self, axis: str) -> int:
        self._numbers[axis] += 1
        return self._numbers[axis]

    def waits(self, what: str) -> None:
        if threading.get_ident() != self._main:
            self._write(_BACKGROUND, what)
            return
        self._write(_AWAITED, what)
        self.flag(WAITS)

    def goes_on(self) -> None:
        if threading.get_ident() != self._main:
            self._write(_BACKGROUND, "")
            return
        self.flag(WAITS, on=False)

    def ended(self, code: int, error: str) -> None:
        self._write(_ERROR, (error.splitlines() or [""])[0])
        _CODE.pack_into(self._memory, 24, code)
        self.flag(ENDED)

    def _write(self, place: slice, text: str) -> None:
        length = place.stop - place.start
        self._memory[place] = text.encode()[:length].ljust(length, b"\0")


@lru_cache(maxsize=1)
def _mine() -> _Mine | None:
    """Reads the environment once. RANK is what torchrun and this launcher set."""
    folder = os.environ.get(FOLDER)
    return _Mine(Path(folder, f"{os.environ.get('RANK', '0')}.rank")) if folder else None
