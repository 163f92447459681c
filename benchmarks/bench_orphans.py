"""How long ranks outlive a launcher that is killed (kill -9), and how soon the same command trains again, for each way
of starting a run.

    python benchmarks/bench_orphans.py                exit code 0 if nothing is left and every run started again

    launcher       megascratch pretrain --nproc-per-node 2; its launcher is killed
    fork-server    the same, but its fork server is killed: the launcher itself starts the ranks again
    torchrun       torchrun's agent is killed
    node           one of two nodes on this machine; its launcher is killed
    node-agent     the same, but torchrun's agent under it is killed
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from megascratch.supervision.folders import stale_folders

SETTINGS = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --vocab-size 64 --mock-data "
    "--seq-length 16 --global-batch-size 8 --train-iters 1000000 --lr-decay-iters 1000 --lr 0.01 "
    "--save-interval 20 --keep-last-n-checkpoints 2 --log-interval 1 --eval-interval 0 "
    "--device cpu --auto-resume"
).split()
WAYS = ("launcher", "fork-server", "torchrun", "node", "node-agent")
PATIENCE = 300.0  # seconds for a start, or for an end that does not come


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    asked = parser.parse_args()
    print("killed         all gone after    trains again after")
    good = True
    for way in asked.ways:
        with tempfile.TemporaryDirectory() as folder:
            gone, again = measure(way, Path(folder))
        left = stale_folders()
        names = "".join(f" {path.name} is left" for path in left)
        print(f"{way:<14} {gone:12.2f} s {again:18.2f} s{names}", flush=True)
        good = good and gone < PATIENCE and again < PATIENCE and not left
    return 0 if good else 1


def measure(way: str, folder: Path) -> tuple[float, float]:
    """Seconds from the kill until all that has to end has ended, and from the new start until it has done a step."""
    commands = commands_of(way, folder)
    runs = [Run(command, folder / f"{number}.txt") for number, command in enumerate(commands)]
    try:
        await_that(lambda: steps(runs) > 2)
        victim, doomed = victims(way, runs[0])
        victim.send_signal(signal.SIGKILL)
        gone = await_that(lambda: not any(map(lives, doomed)))
        done = steps(runs)
        if way != "fork-server":
            runs[0].process.wait()
            runs[0] = Run(commands[0], folder / "again.txt")
            done = steps(runs)
        again = await_that(lambda: steps(runs) > done)
        (folder / "run" / "stop").touch()
        for run in runs:
            run.process.wait(PATIENCE)
        await_that(lambda: not any(lives(child) for run in runs for child in run.family))
    finally:
        for run in runs:
            for process in [run.process, *run.family]:
                if process.is_running():
                    process.kill()
    return gone, again


class Run:
    """A command that has been started."""

    def __init__(self, command: list[str], out: Path):
        self.out = out
        with out.open("w") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            self.process = psutil.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def family(self) -> list[psutil.Process]:
        """What it has started and what lives."""
        try:
            return list(self.process.children(recursive=True))
        except psutil.NoSuchProcess:
            return []


def commands_of(way: str, folder: Path) -> list[list[str]]:
    words = ["-m", "megascratch", "pretrain", *SETTINGS, "--output-dir", str(folder / "run")]
    python = [sys.executable]
    if way == "torchrun":
        return [
            [
                *python,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node",
                "2",
                *words,
                "--data-parallel-size",
                "2",
            ]
        ]
    if way in ("launcher", "fork-server"):
        return [
            [
                *python,
                *words,
                "--data-parallel-size",
                "2",
                "--nproc-per-node",
                "2",
                "--max-restarts",
                "3",
            ]
        ]
    endpoint = f"127.0.0.1:{free_port()}"
    nodes = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--max-restarts",
        "3",
        "--rdzv-endpoint",
        endpoint,
    ]
    nodes += [
        "--rdzv-id",
        "orphans",
        "--local-addr",
        "127.0.0.1",
        "--distributed-timeout-minutes",
        "1",
    ]
    return [[*python, *words, *nodes, "--rdzv-conf", f"is_host={host}"] for host in (0, 1)]


def victims(way: str, run: Run) -> tuple[psutil.Process, list[psutil.Process]]:
    """Who is killed, and who must end with it."""
    family = run.family
    if way == "fork-server":
        server = next(
            one for one in family if "multiprocessing.forkserver" in " ".join(one.cmdline())
        )
        return server, [server, *server.children(recursive=True)]
    if way == "node-agent":
        agent = next(one for one in family if "torch.distributed.run" in one.cmdline())
        return agent, [agent, *agent.children(recursive=True)]
    return run.process, family


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def steps(runs: list[Run]) -> int:
    """Steps that were told so far, of all runs."""
    return sum(run.out.read_text().count("\nstep ") for run in runs)


def await_that(condition: Callable[[], bool]) -> float:
    """Seconds until it is so, PATIENCE if it does not become so."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE:
            return PATIENCE
        time.sleep(0.02)
    return time.monotonic() - began


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
