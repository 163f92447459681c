"""The heartbeat file of each rank: its step, what it does and what it waits for. A supervisor can read it even when the
rank hangs, is stopped or is dead, because the rank maps the file into its memory.

    {folder}/{rank}.rank    1,280 bytes, little-endian:
    0    u32 PID                 4    u32 flags: 1 watched, 2 waits, 4 ended
    8    f64 time.monotonic() of the last change
    16   i64 step                24   i32 exit code, when it has ended
    32   f64 seconds that it may take without a change; 0: as long as the supervisor allows
    64   what it does            192  what it waits for
    448  the same of a background thread          704  the first line of the error that ended it
    1024 the oldest communication that it has launched and that has not ended (runtime/launches.py)

The variable MEGASCRATCH_WATCH names the folder; if it is not set, nothing is written. This module does not need torch.
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

from megascratch.runtime.launch_environment import launch_environment

FOLDER = "MEGASCRATCH_WATCH"
STORE = "MEGASCRATCH_STORE"
"""The variable that names the rendezvous file of a launcher's ranks (parallel/rendezvous.py, which needs torch)."""
SIZE = 1280
WATCHED = 1
WAITS = 2
ENDED = 4
MOST_LISTED = 16  # ranks of a communication
_HEAD = struct.Struct("<IIdqi")
_CODE = struct.Struct("<i")
_PATIENCE = struct.Struct("<d")
_ACTION = slice(64, 192)
_AWAITED = slice(192, 448)
_BACKGROUND = slice(448, 704)
_ERROR = slice(704, 1024)
_LAUNCHED = slice(1024, 1280)


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
    launched: str
    patience: float = 0.0  # seconds without a change; 0: as long as the supervisor allows

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks: in a communication, or for one that its device has not ended."""
        return bool(self.flags & WAITS or self.launched)

    @property
    def waits_for(self) -> str:
        """What it waits for, if it `waits`."""
        return self.awaited if self.flags & WAITS else self.launched

    @property
    def watched(self) -> bool:
        """Whether other ranks wait for it, so that no progress for too long counts as a hang."""
        return bool(self.flags & WATCHED) and not self.ended

    @property
    def ended(self) -> bool:
        """Whether the rank itself has written its exit code."""
        return bool(self.flags & ENDED)


def read(folder: str | Path) -> list[Heartbeat]:
    """The heartbeats in a folder, sorted by rank; ranks that have not written anything yet are left out."""
    heartbeats = []
    for path in Path(folder).glob("*.rank"):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue  # the folder is being deleted
        if len(raw) != SIZE or not path.stem.isdigit():
            continue
        pid, flags, moved, step, code = _HEAD.unpack_from(raw)
        if not pid:
            continue  # the rank is still creating the file
        texts = []
        for field in (_ACTION, _AWAITED, _BACKGROUND, _ERROR, _LAUNCHED):
            texts.append(raw[field].rstrip(b"\0").decode(errors="replace"))
        (patience,) = _PATIENCE.unpack_from(raw, 32)
        action, awaited, background, error, launched = texts
        rank = int(path.stem)
        heartbeats.append(
            Heartbeat(
                rank,
                pid,
                flags,
                moved,
                step,
                code,
                action,
                awaited,
                background,
                error,
                launched,
                patience,
            )
        )
    return sorted(heartbeats)


def set_watched(on: bool = True) -> None:
    """From now on other ranks wait for this one, so a hang is detected; with False, at the end, no longer."""
    if (own := _own_file()) is not None:
        own.flag(WATCHED, on)


class RankPosition:
    """What the main thread is at, in this process's own memory."""

    def __init__(self) -> None:
        self.main = threading.main_thread().ident
        self.step = 0
        self.action = ""
        self.numbers: Counter[str] = Counter()


@lru_cache(maxsize=1)
def position() -> RankPosition:
    """That of this process."""
    return RankPosition()


def may_take(seconds: float) -> None:
    """Until the next step begins, this rank hangs only if it makes no progress for so many seconds."""
    if (own := _own_file()) is not None:
        own.may_take(seconds)


def at_step(step: int) -> None:
    """Records that a step begins."""
    position().step = step
    if (own := _own_file()) is not None:
        own.at_step(step)


def doing(what: str) -> None:
    """Records what this rank does next, e.g. an action of the schedule. Background threads record nothing."""
    here = position()
    if threading.get_ident() != here.main:
        return
    here.action = what
    if (own := _own_file()) is not None:
        own.note(_ACTION, what)


def launched(what: str) -> None:
    """Records the oldest communication that was launched and has not ended; "": there is none."""
    if (own := _own_file()) is not None:
        own.launched(what)


def next_number(axis: str) -> int:
    """The number of the next collective over an axis; if ranks disagree about it, one of them has skipped some."""
    numbers = position().numbers
    numbers[axis] += 1
    return numbers[axis]


@contextmanager
def waiting(what: str, number: int = 0, ranks: Sequence[int] = ()) -> Iterator[None]:
    """A context manager to put around a communication that returns only after other ranks have joined it."""
    own = _own_file()
    if own is None:
        yield
        return
    count = f" number {number}" if number else ""
    own.waits(f"{what}{count}{listed(ranks)}")
    try:
        yield
    finally:
        own.stops_waiting()


def ended(code: int, error: str = "") -> None:
    """Records the exit code and the error of a rank that ends by itself."""
    if (own := _own_file()) is not None:
        own.ended(code, error)


def listed(ranks: Sequence[int]) -> str:
    """The ranks of a communication as a text: ` (ranks 0 1)`; "" for none. Takes no longer for a thousand of them."""
    return _listed(tuple(ranks[: MOST_LISTED + 1]))


@lru_cache(maxsize=256)
def _listed(ranks: tuple[int, ...]) -> str:
    if not ranks:
        return ""
    first = " ".join(map(str, ranks[:MOST_LISTED]))
    more = " ..." if len(ranks) > MOST_LISTED else ""
    return f" (ranks {first}{more})"


class _HeartbeatFile:
    """This rank's heartbeat file, mapped into memory; background threads write to a field of their own."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)
        # Each value is written with a single store. struct would write zeros first, and a reader that sees the time 0
        # would take this rank for one that hangs.
        view = memoryview(self._memory)
        self._flags_there = view.cast("I")
        self._times = view.cast("d")
        self._step = view.cast("q")
        self._main = threading.main_thread().ident
        self._flags = 0
        self._launched = ""
        _HEAD.pack_into(self._memory, 0, os.getpid(), 0, time.monotonic(), 0, 0)

    def flag(self, flag: int, on: bool = True) -> None:
        self._flags = self._flags | flag if on else self._flags & ~flag
        self._flags_there[1] = self._flags
        self._times[1] = time.monotonic()

    def may_take(self, seconds: float) -> None:
        self._times[4] = seconds
        self._times[1] = time.monotonic()

    def at_step(self, step: int) -> None:
        self._step[2] = step
        self._times[4] = 0.0
        self._times[1] = time.monotonic()

    def note(self, field: slice, text: str) -> None:
        self._write(field, text)
        self._times[1] = time.monotonic()

    def launched(self, text: str) -> None:
        if text != self._launched:
            self._launched = text
            self._write(_LAUNCHED, text)

    def waits(self, what: str) -> None:
        if threading.get_ident() != self._main:
            self._write(_BACKGROUND, what)
            return
        self._write(_AWAITED, what)
        self.flag(WAITS)

    def stops_waiting(self) -> None:
        if threading.get_ident() != self._main:
            self._write(_BACKGROUND, "")
            return
        self.flag(WAITS, on=False)

    def ended(self, code: int, error: str) -> None:
        self._write(_ERROR, (error.splitlines() or [""])[0])
        _CODE.pack_into(self._memory, 24, code)
        self.flag(ENDED)

    def _write(self, field: slice, text: str) -> None:
        length = field.stop - field.start
        self._memory[field] = text.encode()[:length].ljust(length, b"\0")


@lru_cache(maxsize=1)
def _own_file() -> _HeartbeatFile | None:
    """This rank's file, or None if the variable is not set. Reads the environment once."""
    folder = os.environ.get(FOLDER)
    return _HeartbeatFile(Path(folder, f"{launch_environment().rank}.rank")) if folder else None
