"""The ranks that torchrun started on this machine in, an end for those that hang out: one small process beside them.

torchrun alone notices a rank that has ended, and then waits 30 s for each that does not obey SIGTERM. This process
knows what every rank does, ends all of them as soon as one has died or stands still, and says why; torchrun then finds
them gone and starts them again, or gives up, as its --max-restarts says. Whoever kills torchrun's agent ends the ranks,
too, with this process or without: they have asked the kernel for it.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from megascratch.config.exit_codes import DONE, STOPS
from megascratch.runtime.heartbeat import FOLDER, Heartbeat, read
from megascratch.runtime.processes import end_with_parent
from megascratch.supervision.folders import delete_stale_folders, shared_folder
from megascratch.supervision.observe import (
    LOOK_EVERY,
    answer_stack_requests,
    is_hung,
    kill,
    log,
    memory_folder,
    observe,
    report,
    state_of,
    wait_for_other_ranks,
)
from megascratch.supervision.report import LOST, refused

ROOT = "MEGASCRATCH_NODE"
"""Names the folder for the ranks' folders where the process that started torchrun wants to read them."""

DEAD_MACHINE = 3
"""Seconds of silence after which `rendezvous_settings` let torchrun give up a machine."""


def rendezvous_settings() -> str:
    """Of torchrun's --rdzv-conf: its own 15 s of silence and 30 s of waiting for more machines are long."""
    return f"keep_alive_interval=1,keep_alive_max_attempt={DEAD_MACHINE},last_call_timeout=2"


def started_by_torchrun() -> bool:
    """Whether this process is a rank of torchrun's."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join_torchrun() -> None:
    """The first thing in a rank that torchrun started: it ends with torchrun's agent, and shares a folder, which FOLDER
    names, with the ranks of its machine. Elsewhere nothing happens.

    Raises: UserError where another user has made such a folder.
    """
    if not started_by_torchrun() or FOLDER in os.environ:
        return
    agent = os.getppid()
    end_with_parent(agent)
    if ROOT not in os.environ:
        delete_stale_folders()
    name = f"{os.environ.get('MASTER_PORT')}-{_attempt()}"
    os.environ[FOLDER] = str(shared_folder(os.environ.get(ROOT) or memory_folder(), agent, name))


def watch_torchrun(limit: float, output_dir: str) -> None:
    """In a rank that torchrun started: notes from now on what it does; the first rank of a machine starts the process
    that watches. Elsewhere, and where a launcher of this package watches, nothing happens."""
    if not started_by_torchrun():
        return
    join_torchrun()
    answer_stack_requests()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        to = Path(output_dir, "faults", f"{os.uname().nodename}_attempt_{_attempt()}.txt")
        start_watching(limit, str(to))


def start_watching(limit: float = 60.0, to: str = os.devnull) -> None:
    """Starts the process beside this machine's ranks, unless one has. It deletes their folder in the end.

    Args:
        limit: seconds without progress that make a hang.
        to: the file for its report.
    """
    try:
        Path(os.environ[FOLDER], "watched").touch(exist_ok=False)
    except FileExistsError:
        return
    command = [sys.executable, "-m", "megascratch.supervision.torchrun_watcher", os.environ[FOLDER], str(os.getppid())]
    subprocess.Popen([*command, str(limit), to], stdin=subprocess.DEVNULL, start_new_session=True)


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def outlive_dead_machines() -> None:
    """In a rank whose communication has failed, before it ends: where torchrun joins several machines, waits until it
    has given up one that may be dead. It would otherwise start the next attempt at once, with the dead one."""
    several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")
    if several and started_by_torchrun():
        time.sleep(DEAD_MACHINE + 0.5)


def main(folder: str, agent: int, limit: float, to: str) -> None:
    """Watches until all ranks of the folder are gone, or ends them."""
    place = Path(folder)
    while True:
        time.sleep(LOOK_EVERY)
        codes = _codes(place)
        if codes and None not in codes.values():
            break
        reason = _reason_to_end(place, codes, limit)
        if reason or not state_of(agent):
            if reason:
                wait_for_other_ranks(place, lambda: _codes(place))
                seen = observe(place, _codes(place))
                if not refused(seen):
                    log(report(seen, place, Path(to), reason))
            kill([where.pid for where in read(place) if _alive(where)])
            break
    if ROOT not in os.environ:
        shutil.rmtree(place, ignore_errors=True)


def _reason_to_end(place: Path, codes: dict[int, int | None], limit: float) -> str:
    if any(code not in (None, DONE, *STOPS) for code in codes.values()):
        return "an attempt ends with its first rank"
    return f"no progress for {limit:g} s" if is_hung(place, codes, limit) else ""


def _codes(place: Path) -> dict[int, int | None]:
    """Whose child a rank is learns its exit code; here only what it said itself is known."""
    return {where.rank: None if _alive(where) else where.code if where.ended else LOST for where in read(place)}


def _alive(where: Heartbeat) -> bool:
    return state_of(where.pid) not in ("", "Z", "X")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
