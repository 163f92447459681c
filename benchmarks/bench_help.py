"""How long a user waits for help, for the version and for the completion of a word, each in a process of its own.

python benchmarks/bench_help.py [--repeat 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megascratch.commands import VERBS  # noqa: E402


def seconds(words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command, from the start of its process to its end."""
    command = [sys.executable, "-m", "megascratch", *words]
    before = os.times()
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - begin
    after = os.times()
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    commands = [[verb, "--help"] for verb in VERBS]
    commands += [["--help"], ["--version"], ["pretrain", "--help-all"]]
    commands.append(["completion", "--words", "pretrain", "--lr"])
    print(f"{'command':<34}{'wall s':>8}{'CPU s':>8}   median of {repeat}")
    for words in commands:
        measured = [seconds(words) for _ in range(repeat)]
        wall = statistics.median(wall for wall, _ in measured)
        cpu = statistics.median(cpu for _, cpu in measured)
        print(f"{' '.join(words):<34}{wall:>8.2f}{cpu:>8.2f}")


if __name__ == "__main__":
    main()
