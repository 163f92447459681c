"""A watchdog process for the ranks that torchrun started on this machine: kills all of them as soon as one dies or
hangs, and reports the cause.

torchrun alone only notices that a rank has ended, and then waits 30 s for each one that does not obey SIGTERM. This
process reads every rank's heartbeat, so it also detects a hang. Once it has killed the ranks, torchrun restarts them or
gives up, according to its --max-restarts. If torchrun's agent is killed, the kernel ends the ranks, with or without
this process.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from megascratch.config.exit_codes import DONE, STOPS
from megascratch.runtime.heartbeat import FOLDER, read
from megascratch.runtime.launch_environment import launch_environment
from megascratch.runtime.processes import end_with_parent
from megascratch.supervision.folders import delete_stale_folders, shared_folder
from megascratch.supervision.observe import (
    LOOK_EVERY,
    answer_stack_requests,
    is_alive,
    kill,
    log,
    memory_folder,
    observe,
    report,
    seconds_hung,
    wait_for_other_ranks,
)
from megascratch.supervision.report import LOST, refused

ROOT = "MEGASCRATCH_NODE"
"""The variable that names the parent of the ranks' folders, set if the process that started torchrun reads them."""

DEAD_MACHINE = 3
"""Seconds of silence after which torchrun, with `rendezvous_settings`, gives up a machine."""


def rendezvous_settings() -> str:
    """Settings for torchrun's --rdzv-conf: shorter than its defaults, 15 s of silence and 30 s of waiting for more
    machines."""
    return f"keep_alive_interval=1,keep_alive_max_attempt={DEAD_MACHINE},last_call_timeout=2"


def started_by_torchrun() -> bool:
    """Whether this process is a rank that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join_torchrun() -> None:
    """Called first in a rank that torchrun started: from now on the rank ends with torchrun's agent, and shares a
    folder, named by the variable FOLDER, with the ranks of its machine. In other processes this does nothing.

    Raises: UserError if another user has created such a folder.
    """
    if not started_by_torchrun() or FOLDER in os.environ:
        return
    agent = os.getppid()
    end_with_parent(agent)
    if ROOT not in os.environ:
        delete_stale_folders()
    name = f"{os.environ.get('MASTER_PORT')}-{launch_environment().attempt}"
    os.environ[FOLDER] = str(shared_folder(os.environ.get(ROOT) or memory_folder(), agent, name))


def watch_torchrun(limit: float, output_dir: str) -> None:
    """Called in a rank that torchrun started: from now on it writes heartbeats, and the first rank of a machine starts
    the watchdog. In other processes, also under this package's own launcher, this does nothing."""
    if not started_by_torchrun():
        return
    join_torchrun()
    answer_stack_requests()
    environment = launch_environment()
    if environment.local_rank == 0:
        report_file = Path(
            output_dir, "faults", f"{os.uname().nodename}_attempt_{environment.attempt}.txt"
        )
        start_watching(limit, str(report_file))


def start_watching(limit: float = 60.0, report_file: str = os.devnull) -> None:
    """Starts the watchdog process for this machine's ranks, unless it has been started. At its end it deletes their
    folder.

    Args:
        limit: seconds without progress that count as a hang.
        report_file: the file that the report is written to.
    """
    try:
        Path(os.environ[FOLDER], "watched").touch(exist_ok=False)
    except FileExistsError:
        return
    command = [
        sys.executable,
        "-m",
        "megascratch.supervision.torchrun_watcher",
        os.environ[FOLDER],
        str(os.getppid()),
    ]
    subprocess.Popen(
        [*command, str(limit), report_file], stdin=subprocess.DEVNULL, start_new_session=True
    )


def outlive_dead_machines() -> None:
    """Called in a rank whose communication has failed, before it ends. If torchrun joins several machines, waits until
    it has given up a machine that may be dead; otherwise it would at once start the next attempt with the dead one."""
    environment = launch_environment()
    several = environment.local_world_size != environment.world_size
    if several and started_by_torchrun():
        time.sleep(DEAD_MACHINE + 0.5)


def main(folder: Path, agent: int, limit: float, report_file: Path) -> None:
    """Watches the ranks of `folder` until all of them have ended; kills them if one fails or hangs, or if torchrun's
    agent is gone."""
    while True:
        time.sleep(LOOK_EVERY)
        codes = _codes(folder)
        if codes and None not in codes.values():
            break
        reason = _reason_to_end(folder, codes, limit)
        if reason or not is_alive(agent):
            if reason:
                wait_for_other_ranks(folder, lambda: _codes(folder))
                seen = observe(folder, _codes(folder))
                if not refused(seen):
                    log(report(seen, folder, report_file, reason))
            kill([where.pid for where in read(folder) if is_alive(where.pid)])
            break
    if ROOT not in os.environ:
        shutil.rmtree(folder, ignore_errors=True)


def _reason_to_end(folder: Path, codes: dict[int, int | None], limit: float) -> str:
    if any(code not in (None, DONE, *STOPS) for code in codes.values()):
        return "one failed rank ends the attempt"
    hung = seconds_hung(folder, codes, limit)
    return f"no progress for {hung:g} s" if hung else ""


def _codes(folder: Path) -> dict[int, int | None]:
    """Exit codes as the ranks themselves reported them, since only a parent process learns the real ones."""
    codes: dict[int, int | None] = {}
    for where in read(folder):
        if is_alive(where.pid):
            codes[where.rank] = None
        else:
            codes[where.rank] = where.code if where.ended else LOST
    return codes


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
