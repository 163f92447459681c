"""How long from a fault until it is noticed, and until the job has done its next step: a rank that dies, hangs, or is
stopped, in a run of 4 ranks with a time-out of 5 s.

    python benchmarks/bench_faults.py

Peer: torchrun's own restart of a script that does nothing but import torch takes 7.4 to 9.6 s after a death and 41.8 s
after a SIGSTOP with the same time-out on two cores, when its store is made to work (see docs/guides/multi-node.md).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from megascratch.runtime.faults import VARIABLE

RUN = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --vocab-size 256 --mock-data "
    "--seq-length 64 --global-batch-size 8 --train-iters 40 --save-interval 5 --log-interval 1 "
    "--eval-interval 0 --device cpu --max-restarts 1"
).split()
LAYOUTS = {
    2: ["--tensor-model-parallel-size", "2"],
    4: ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, choices=LAYOUTS, default=4)
    parser.add_argument("--timeout", type=float, default=5.0)
    asked = parser.parse_args()
    print(
        f"{asked.ranks} ranks, time-out {asked.timeout:g} s\nfault    noticed    next step    the report says"
    )
    for action in ("kill", "hang", "stop"):
        noticed, onward, told = measure(action, asked.ranks, asked.timeout)
        print(f"{action:<6} {noticed:7.2f} s  {onward:9.2f} s    {told}", flush=True)


def measure(action: str, ranks: int, timeout: float) -> tuple[float, float, str]:
    """Seconds from the fault to the supervisor's report and to the next step's end, and the report's first line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "megascratch",
            "pretrain",
            *RUN,
            *LAYOUTS[ranks],
            "--output-dir",
            folder,
            "--nproc-per-node",
            str(ranks),
            "--distributed-timeout-minutes",
            str(timeout / 60),
        ]
        environment = {**os.environ, VARIABLE: f"step.begin:1:18:{action}", "PYTHONUNBUFFERED": "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=environment, text=True, **streams)
        assert process.stdout is not None
        struck = noticed = 0.0
        told = ""
        onward = 0.0
        for line in process.stdout:
            now = time.monotonic()
            if line.startswith("fault point"):
                struck = now
            elif line.startswith("megascratch supervisor: rank") and not noticed:
                noticed = now
                told = line.removeprefix("megascratch supervisor: ").strip()
            elif line.startswith("step ") and noticed and not onward:
                onward = now
        if process.wait():
            raise SystemExit(f"the run ended with exit code {process.returncode}")
    return noticed - struck, onward - struck, told


if __name__ == "__main__":
    main()
