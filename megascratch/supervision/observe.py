"""Looks at the ranks of one machine from outside: what each does, where its code stands; and ends them.

A rank helps with `answer_stack_requests`: from then on SIGUSR2 makes it write the stacks of all its threads to
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

from megascratch.config.printable import printable_lines
from megascratch.runtime.heartbeat import FOLDER, read
from megascratch.supervision.report import RankStatus, any_hung, cause_is_known, headline, may_still_report, table

ASK_FOR_STACKS = signal.SIGUSR2
SECONDS_FOR_STACKS = 5.0  # a rank answers at once, if the machine is not too busy
LOOK_EVERY = 0.1  # seconds
OTHERS_END = 0.4  # seconds that the other ranks have to end by themselves, once it is known which rank began it
CAUSE_SHOWS = 20.0  # seconds until it must be known: a machine may be slow to tell which process it has lost


def answer_stack_requests(folder: str | None = None) -> None:
    """In a rank: opens the file of its stacks and answers the signal that asks for them."""
    folder = folder or os.environ.get(FOLDER)
    if folder is not None:
        file = Path(folder, f"{os.environ.get('RANK', '0')}.stacks").open("w")  # noqa: SIM115 - for the rank's life
        faulthandler.register(ASK_FOR_STACKS, file=file, all_threads=True, chain=False)


def observe(folder: Path, codes: Mapping[int, int | None]) -> list[RankStatus]:
    """All ranks of `codes` (rank -> exit code, None: it lives) as they are now."""
    known, now = {where.rank: where for where in read(folder)}, time.monotonic()
    seen = []
    for rank, code in sorted(codes.items()):
        where = known.get(rank)
        state = state_of(where.pid) if where is not None and code is None else ""
        seen.append(RankStatus(rank, code, state, now - where.moved if where else 0.0, where))
    return seen


def is_hung(folder: Path, codes: Mapping[int, int | None], limit: float) -> bool:
    """Whether a rank that others wait for hangs; seen twice, because a look may fall into the moment it writes."""
    if not any_hung(observe(folder, codes), limit):
        return False
    time.sleep(0.02)
    return any_hung(observe(folder, codes), limit)


def wait_for_other_ranks(
    folder: Path, codes: Callable[[], Mapping[int, int | None]], pause: Callable[[float], object] = time.sleep
) -> None:
    """After the first rank's end: returns when all have ended; or it is known which rank began it, no other is at work,
    and they have had OTHERS_END seconds to end by themselves.

    Args:
        codes: the ranks' exit codes now.
        pause: waits so many seconds, or less if a rank ends.
    """
    began = quiet = time.monotonic()
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
    """R, S, D, T, Z ... as Linux has it; "" where there is no such process or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def report(seen: Sequence[RankStatus], folder: Path, to: Path, reason: str) -> str:
    """Takes the stacks of all that live, writes everything to the file `to`, and returns the part for the console."""
    stacks = take_stacks(seen, folder)
    said = [f"{headline(seen)} ({reason})", *table(seen)]
    with suppress(OSError):  # the console has the essential
        to.parent.mkdir(parents=True, exist_ok=True)
        text = [f"---- rank {rank}, most recent call first\n{stack}" for rank, stack in stacks.items()]
        to.write_text("\n".join([*said, "", *text]))
        said.append(f"   the stacks of all threads: {to}")
    return "\n".join(said)


def take_stacks(seen: Sequence[RankStatus], folder: Path) -> dict[int, str]:
    """Of every rank that lives, is not stopped and answers, by rank."""
    asked = {
        one.rank: folder / f"{one.rank}.stacks"
        for one in seen
        if one.code is None and not one.stopped and one.where is not None and not one.where.ended
    }
    asked = {rank: file for rank, file in asked.items() if file.exists()}  # else the signal would end it
    pids = {one.rank: one.where.pid for one in seen if one.where is not None}
    for rank in asked:
        with suppress(OSError):
            os.kill(pids[rank], ASK_FOR_STACKS)
    ends = time.monotonic() + SECONDS_FOR_STACKS
    before: list[int] = []
    while asked and time.monotonic() < ends:
        sizes = [file.stat().st_size for file in asked.values()]
        if all(sizes) and sizes == before:
            break  # all have written, and none is still at it
        before = sizes
        time.sleep(0.05)
    return {rank: file.read_text(errors="replace") for rank, file in asked.items()}


def kill(pids: Sequence[int]) -> None:
    """SIGKILL ends a stopped process, too; nothing is lost by it, since a checkpoint appears whole or not at all."""
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def log(text: str) -> None:
    """To the error stream, in one piece."""
    print(f"megascratch supervisor: {printable_lines(text)}", file=sys.stderr, flush=True)


def memory_folder() -> str:
    """A folder in memory, where there is one: ranks write there many times a second."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
