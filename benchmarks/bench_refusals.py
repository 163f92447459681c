"""How long a user waits for a refusal: each mistake of the table of the tests, 60 generated sets of wrong settings, and
two ranks that do not start alike.

python benchmarks/bench_refusals.py [--seed 5] [--each]

A mistake is timed in a process that has answered others before it, so imports are not in its seconds; what a start with
its imports takes is measured apart, once for a refusal without torch and once for one with it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.mistakes.table import TABLE, answers  # noqa: E402
from tests.support.resumed_runs import DIFFERENCES, started_together  # noqa: E402

SLOWEST = 5  # mistakes of a kind that are printed
STARTS = {
    "no torch": "pretrain --config ok.yaml --num-layers -1",
    "a checkpoint": "pretrain --config ok.yaml --output-dir runs/done --auto-resume --hidden-size 64",
}


def seconds_of_a_start(world: Path, words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command that is refused, from its start to its end."""
    command = [sys.executable, "-m", "megascratch", *words]
    before = os.times()
    subprocess.run(
        command, cwd=world, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    after = os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return after.elapsed - before.elapsed, cpu


def print_mistakes(found: dict[str, dict[str, Any]], each: bool) -> None:
    """A line per kind, and a line for each mistake or for the slowest ones."""
    times: dict[str, list[tuple[float, float, str]]] = {"no torch": [], "torch": []}
    for row in TABLE:
        answer = found[row.name]["mistake"]
        kind = "torch" if row.torch else "no torch"
        times[kind].append((answer["wall"], answer["cpu"], row.name))
    for kind, rows in times.items():
        rows.sort(reverse=True)
        print(
            f"{len(rows)} mistakes, {kind}: median {1000 * median(wall for wall, *_ in rows):.1f} ms, "
            f"{1000 * median(cpu for _, cpu, _ in rows):.1f} ms of CPU, after imports; the slowest (wall, CPU):"
        )
        for wall, cpu, name in rows if each else rows[:SLOWEST]:
            print(f"{1000 * wall:>9.1f}{1000 * cpu:>9.1f}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--each", action="store_true", help="print a line for each mistake")
    options = parser.parse_args()
    seed = options.seed
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "tests" / "support" / "bad_flags.py"),
            "60",
            str(seed),
        ]
        done = subprocess.run(
            command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True
        )
        refusals = json.loads(done.stdout)["answers"]
        seconds = sorted(answer[2] for answer in refusals)
        print(
            f"60 sets of wrong settings: exit codes {sorted({answer[0] for answer in refusals})}, "
            f"median {seconds[30]:.3f} s, slowest {seconds[-1]:.3f} s after imports"
        )
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder, "world")
        print_mistakes(answers(world), options.each)
        for name, words in STARTS.items():
            wall, cpu = seconds_of_a_start(world, words.split())
            print(f"a process of its own, {name}: {wall:.2f} s, {cpu:.2f} s of CPU")
    for difference in DIFFERENCES:
        with tempfile.TemporaryDirectory() as folder:
            ranks = started_together(Path(folder), difference)
            print(
                f"two ranks, {difference} differs: exit codes {[code for code, *_ in ranks]}, all stopped after "
                f"{max(seconds for *_, seconds in ranks):.1f} s, imports included"
            )


if __name__ == "__main__":
    main()
