"""Observes the ranks of one machine from outside: reads their heartbeats, detects a hang, collects the stacks of their
threads, and kills them.

A rank calls `answer_stack_requests` first: from then on SIGUSR2 makes it write the stacks of all its threads to
{folder}/{rank}.stacks, even while it waits inside C++.
"""

import faulthandler
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from megascratch.config.printable import printable_lines
from megascratch.runtime.heartbeat import FOLDER, read
from megascratch.runtime.launch_environment import launch_environment
from megascratch.supervision.report import (
    RankStatus,
    cause_is_known,
    headline,
    hung_for,
    may_still_report,
    table,
)

ASK_FOR_STACKS = signal.SIGUSR2
SECONDS_FOR_STACKS = 5.0  # a rank answers at once unless the machine is very busy
LOOK_EVERY = 0.1  # seconds
OTHERS_END = 0.4  # seconds that the other ranks have to end by themselves, once the rank that caused it is known
CAUSE_SHOWS = (
    20.0  # seconds to wait for the cause: a machine may be slow to report which process it has lost
)


def answer_stack_requests(folder: str | None = None) -> None:
    """Called in a rank: from now on the signal ASK_FOR_STACKS makes it write its stacks to its file in the folder."""
    folder = folder or os.environ.get(FOLDER)
    if folder is not None:
        file = Path(folder, f"{launch_environment().rank}.stacks").open("w")  # noqa: SIM115 - for the rank's life
        faulthandler.register(ASK_FOR_STACKS, file=file, all_threads=True, chain=False)


def observe(folder: Path, codes: Mapping[int, int | None]) -> list[RankStatus]:
    """The status of all ranks in `codes` (rank -> exit code, None: it is alive) as they are now."""
    known = {where.rank: where for where in read(folder)}
    now = time.monotonic()
    seen = []
    for rank, code in sorted(codes.items()):
        where = known.get(rank)
        state = ""
        idle_seconds = 0.0
        if where is not None:
            idle_seconds = now - where.moved
            if code is None:
                state = state_of(where.pid)
        seen.append(RankStatus(rank, code, state, idle_seconds, where))
    return seen


def seconds_hung(folder: Path, codes: Mapping[int, int | None], limit: float) -> float:
    """As `hung_for`, of the ranks as they are now. Looks twice, because one look may catch a rank while it writes."""
    if not hung_for(observe(folder, codes), limit):
        return 0.0
    time.sleep(0.02)
    return hung_for(observe(folder, codes), limit)


def wait_for_other_ranks(
    folder: Path,
    codes: Callable[[], Mapping[int, int | None]],
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Called when the first rank has ended: gives the other ranks time to end by themselves and to report why. Returns
    when all have ended, or when the cause is known, no other rank is at work and OTHERS_END seconds have passed; after
    CAUSE_SHOWS seconds in any case.

    Args:
        codes: returns the current exit codes of the ranks.
        pause: waits so many seconds, or less if a rank ends.
    """
    began = time.monotonic()
    quiet = began  # the last time that a rank could still report its error
    while True:
        ends = codes()
        seen = observe(folder, ends)
        now = time.monotonic()
        if None not in ends.values() or now - began > CAUSE_SHOWS:
            return
        if not cause_is_known(seen) or may_still_report(seen):
            quiet = now
        elif now - quiet > OTHERS_END:
            return
        pause(0.05)


def state_of(pid: int) -> str:
    """The state of a process, as psutil names it: one of psutil.STATUS_*; "" if there is no such process."""
    try:
        return psutil.Process(pid).status()
    except (psutil.Error, OSError):
        return ""


def is_alive(pid: int) -> bool:
    """Whether the process is there and has not ended; a zombie has, and only waits for its parent."""
    return state_of(pid) not in ("", psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def report(seen: Sequence[RankStatus], folder: Path, to: Path, reason: str) -> str:
    """Collects the stacks of all ranks that are alive, writes the full report to the file `to`, and returns the part
    for the console."""
    stacks = take_stacks(seen, folder)
    lines = [f"{headline(seen)} ({reason})", *table(seen)]
    full = [*lines, ""]
    for rank, stack in stacks.items():
        full.append(f"---- rank {rank}, most recent call first\n{stack}")
    with suppress(OSError):  # the console has the essential part
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text("\n".join(full))
        lines.append(f"   the stacks of all threads: {to}")
    return "\n".join(lines)


def take_stacks(seen: Sequence[RankStatus], folder: Path) -> dict[int, str]:
    """Stacks of all threads of every rank that is alive, not stopped, and answers; by rank."""
    asked = {}  # rank -> its file
    for one in seen:
        if one.code is not None or one.stopped or one.where is None or one.where.ended:
            continue
        file = folder / f"{one.rank}.stacks"
        if not file.exists():
            continue  # the signal would kill this rank
        asked[one.rank] = file
        with suppress(OSError):
            os.kill(one.where.pid, ASK_FOR_STACKS)
    ends = time.monotonic() + SECONDS_FOR_STACKS
    before: list[int] = []
    while asked and time.monotonic() < ends:
        sizes = [file.stat().st_size for file in asked.values()]
        if all(sizes) and sizes == before:
            break  # all have written, and none is still writing
        before = sizes
        time.sleep(0.05)
    return {rank: file.read_text(errors="replace") for rank, file in asked.items()}


def kill(pids: Sequence[int]) -> None:
    """Kills processes with SIGKILL, which also ends a stopped process. No checkpoint is damaged by it, because a
    checkpoint becomes visible only when it is complete."""
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def log(text: str) -> None:
    """Prints a message of the supervisor to stderr in one write."""
    print(f"megascratch supervisor: {printable_lines(text)}", file=sys.stderr, flush=True)


def memory_folder() -> str:
    """A folder in memory if there is one, because ranks write there many times a second; otherwise the temp folder."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
