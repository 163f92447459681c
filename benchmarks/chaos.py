"""A run that something happens to about every 20 seconds beside one that is left alone: are the weights the same, and
which part of the time was good for anything?

    python benchmarks/chaos.py --minutes 20        exit code 0 if every bit of the final weights is equal

    python benchmarks/chaos.py --kills 60 --victims rank launcher fork-server        that many kills, however long

A rank is killed or stopped (SIGSTOP) from outside, a launcher or a fork server is killed, a write of a checkpoint meets
a full disk or an I/O error. After a launcher's death the same command is given again, at once. When the time is over a
stop file ends the run, and the same number of steps is trained again without disturbance. Goodput is the time those
steps take undisturbed, as a part of the time that they took. No process and no folder in memory may be left.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from megascratch.runtime.faults import VARIABLE
from megascratch.runtime.heartbeat import Heartbeat, read
from megascratch.supervision.folders import stale_folders
from megascratch.supervision.observe import memory_folder

SETTINGS = {
    "num-layers": 4,
    "hidden-size": 64,
    "num-attention-heads": 4,
    "vocab-size": 256,
    "seq-length": 64,
    "global-batch-size": 8,
    "lr": 0.001,
    "lr-decay-iters": 100_000,
    "eval-interval": 0,
    "log-interval": 20,
    "save-interval": 10,
    "keep-last-n-checkpoints": 3,
    "device": "cpu",
    "train-iters": 10**7,
}
LAYOUTS = {
    1: [],
    2: ["--use-distributed-optimizer"],
    4: ["--pipeline-model-parallel-size", "2", "--use-distributed-optimizer"],
}
VICTIMS = ("rank", "stop", "launcher", "fork-server")
TIMEOUT = 5.0  # seconds until a rank that does not move is a hang


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--kills", type=int, help="end after so many instead")
    parser.add_argument("--every", type=float, default=20.0, help="mean seconds between two faults")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=("rank", "stop"))
    parser.add_argument("--ranks", type=int, choices=LAYOUTS, default=4)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wild = Path(folder, "wild")
        calm = Path(folder, "calm")
        seconds, struck, left = disturbed(wild, asked)
        steps = json.loads((wild / "summary.json").read_text())["steps"]
        undisturbed = run(calm, asked.ranks, **{"train-iters": steps, "save-interval": 0})
        if undisturbed.wait():
            return 1
        good = step_seconds(calm) * steps
        same = weights(wild, steps) == weights(calm, steps) != {}
        told = len(list((wild / "faults").iterdir())) if (wild / "faults").exists() else 0
        disk = sum(1 for row in rows(wild) if row.get("event") == "save" and "error" in row)
    strikes = ", ".join(f"{count} x {victim}" for victim, count in struck.items() if count)
    print(
        f"{steps:,} steps in {seconds:.0f} s with {strikes}, {disk} failed saves; {told} reports; "
        f"goodput {good / seconds:.1%}"
    )
    print(
        f"final weights, masters and moments: {'equal to the undisturbed run, every bit' if same else 'DIFFERENT'}"
    )
    print(f"left behind: {', '.join(left) or 'nothing'}")
    return 0 if same and not left else 1


def disturbed(folder: Path, asked: argparse.Namespace) -> tuple[float, dict[str, int], list[str]]:
    """Runs until the time is over or the kills are done; the seconds, how often what was done, what is left of it."""
    dice = random.Random(asked.seed)
    struck = dict.fromkeys(VICTIMS, 0)
    family: dict[int, psutil.Process] = {}
    process = run(folder, asked.ranks, faults=disk_faults(dice, asked.ranks))
    began = time.monotonic()
    while asked.kills is None or sum(struck.values()) < asked.kills:
        left = (
            60 * asked.minutes - (time.monotonic() - began)
            if asked.kills is None
            else asked.every * 10
        )
        if left <= 0:
            break
        time.sleep(min(left, dice.expovariate(1 / asked.every)))
        victim = dice.choice(asked.victims)
        living = ranks_of(process.pid)
        if not living:
            continue  # it is just starting
        members = psutil.Process(process.pid).children(recursive=True)
        family.update({member.pid: member for member in members})
        if strike(victim, process, members, dice.choice(living).pid):
            struck[victim] += 1
        if victim == "launcher":
            process.wait()
            process = run(folder, asked.ranks, faults=disk_faults(dice, asked.ranks))
    (folder / "stop").touch()
    if process.wait() != 82:
        raise SystemExit(f"the disturbed run ended with exit code {process.returncode}")
    seconds = time.monotonic() - began
    _, alive = psutil.wait_procs(family.values(), timeout=60)
    left = [f"process {one.pid}" for one in alive]
    left += [path.name for path in stale_folders()]
    return seconds, struck, left


def strike(
    victim: str, launcher: subprocess.Popen, members: list[psutil.Process], rank: int
) -> bool:
    """Whether it was there to be struck."""
    if victim == "launcher":
        launcher.kill()
    elif victim == "fork-server":
        servers = [
            member for member in members if member.ppid() == launcher.pid and is_fork_server(member)
        ]
        if not servers:
            return False
        servers[0].kill()
    else:
        os.kill(rank, signal.SIGSTOP if victim == "stop" else signal.SIGKILL)
    return True


def is_fork_server(process: psutil.Process) -> bool:
    return "multiprocessing.forkserver" in " ".join(process.cmdline())


def disk_faults(dice: random.Random, ranks: int) -> str:
    """In each attempt one write of a checkpoint fails, sooner or later."""
    places = (
        (dice.randrange(ranks), dice.randint(1, 40), dice.choice(("enospc", "eio")))
        for _ in range(1000)
    )
    return ",".join(
        f"save.write:{rank}:{nth}:{action}:{attempt}"
        for attempt, (rank, nth, action) in enumerate(places)
    )


def run(folder: Path, ranks: int, faults: str | None = None, **settings: int) -> subprocess.Popen:
    words = [
        word
        for name, value in {**SETTINGS, **settings}.items()
        for word in (f"--{name}", str(value))
    ]
    command = [
        sys.executable,
        "-m",
        "megascratch",
        "pretrain",
        *words,
        "--mock-data",
        "--output-dir",
        str(folder),
        "--nproc-per-node",
        str(ranks),
        *LAYOUTS[ranks],
    ]
    environment = dict(os.environ)
    if faults is not None:
        command += [
            "--auto-resume",
            "--max-restarts",
            "1000",
            "--distributed-timeout-minutes",
            str(TIMEOUT / 60),
        ]
        environment[VARIABLE] = faults
    return subprocess.Popen(command, env=environment)


def ranks_of(launcher: int) -> list[Heartbeat]:
    """The living ranks that a launcher has started."""
    family = {process.pid for process in psutil.Process(launcher).children(recursive=True)}
    folders = Path(memory_folder()).glob("megascratch-ranks-*")
    return [where for folder in folders for where in read(folder) if where.pid in family]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def step_seconds(folder: Path) -> float:
    """Of the steps of a run, the mean."""
    seconds = [row["step_seconds"] for row in rows(folder) if "step_seconds" in row]
    return sum(seconds) / len(seconds)


def weights(folder: Path, step: int) -> dict[str, bytes]:
    files = (folder / "checkpoints" / f"step_{step:08}").glob("*.safetensors")
    return {file.name: file.read_bytes() for file in files}


if __name__ == "__main__":
    sys.exit(main())
