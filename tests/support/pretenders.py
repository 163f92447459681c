"""Processes that only pretend to train, for tests that kill those above them: no torch, so they start at once."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from megascratch.commands import _complain
from megascratch.config.errors import SettingError
from megascratch.supervision.launch import LaunchConfig, launch
from megascratch.supervision.torchrun_watcher import join_torchrun


def stay(folder: str) -> int:
    """A rank that does nothing for as long as nobody ends it."""
    Path(folder, os.environ["RANK"]).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def launch_two(folder: str, max_restarts: int) -> int:
    """A launcher with two such ranks."""
    return launch(
        LaunchConfig(
            partial(stay, folder), 2, max_restarts, limit=60.0, reports=Path(folder, "faults")
        )
    )


def start_rank_like_torchrun(folder: str, system: str) -> None:
    """An agent with one rank, which notes its number; as on another system than Linux, if `system` says so."""
    sys.platform = system
    os.environ.update(
        TORCHELASTIC_RUN_ID="none", RANK="0", MASTER_PORT="1", MEGASCRATCH_NODE=folder
    )
    if os.fork() == 0:
        join_torchrun()
        stay(folder)
    time.sleep(600)


def refuse(folder: str, waits_for: str) -> None:
    """A rank whose settings are wrong: it says so and ends, the slow one when the other has ended."""
    rank = os.environ["RANK"]
    Path(folder, f"{rank}.ready").touch()  # from here on a signal ends it
    while waits_for and not Path(folder, waits_for).exists():
        time.sleep(0.02)
    _complain("pretrain", SettingError("lr (-1) must be above 0"))
    Path(folder, f"{rank}.told").touch()


def main(what: str, folder: str, more: str) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if what == "launch":
        return launch_two(folder, int(more))
    if what == "torchrun":
        start_rank_like_torchrun(folder, more)
    if what == "refuse":
        refuse(folder, more)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
