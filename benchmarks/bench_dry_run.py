"""The time and the memory of a dry run of Llama 3 405B on 16,384 ranks (tp 8, pp 16, dp 128): a rank of the first, of a
middle and of the last stage, each in a process of its own.

Fails if one takes longer than --seconds or more memory than --gib.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PRESET = Path(__file__).resolve().parents[1] / "examples" / "models" / "llama3-405b.yaml"
WORLD = 16_384
RANKS = {"first": 0, "middle": 8_192, "last": WORLD - 1}
GIB = 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="the longest time (default: 60)"
    )
    parser.add_argument("--gib", type=float, default=8.0, help="the most memory (default: 8)")
    options = parser.parse_args()
    print("stage     rank   seconds   GiB of this process   GiB of the GPU   parameters   FLOPs")
    worst = 0.0
    for stage, rank in RANKS.items():
        seconds, gib, found = dry_run(rank)
        worst = max(worst, seconds / options.seconds, gib / options.gib)
        flops = sum(found["flops"].values())
        print(
            f"{stage:<6} {rank:>7} {seconds:>9.1f} {gib:>21.2f} {found['memory']['peak'] / GIB:>16.2f} "
            f"{found['parameters']['held'] / 1e9:>10.2f} B   {flops:.2e}",
            flush=True,
        )
    return 1 if worst > 1 else 0


def dry_run(rank: int) -> tuple[float, float, dict[str, Any]]:
    """Seconds on the clock, the most resident memory of the process in GiB, and what it printed of the rank."""
    command = [
        *(sys.executable, "-m", "megascratch", "dry-run", "--config", str(PRESET), "--json"),
        *("--world", str(WORLD), "--rank", str(rank)),
    ]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - start
    return seconds, used.ru_maxrss * 1024 / GIB, json.loads(printed)["ranks"][0]


if __name__ == "__main__":
    sys.exit(main())
