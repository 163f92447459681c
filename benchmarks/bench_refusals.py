"""How long a user waits for a refusal: 60 generated sets of wrong settings, and two ranks that do not start alike.

python benchmarks/bench_refusals.py [--seed 5]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.resumed_runs import DIFFERENCES, started_together  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    seed = parser.parse_args().seed
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
        answers = json.loads(done.stdout)["answers"]
        seconds = sorted(answer[2] for answer in answers)
        print(
            f"60 sets of wrong settings: exit codes {sorted({answer[0] for answer in answers})}, "
            f"median {seconds[30]:.3f} s, slowest {seconds[-1]:.3f} s after imports"
        )
    for difference in DIFFERENCES:
        with tempfile.TemporaryDirectory() as folder:
            ranks = started_together(Path(folder), difference)
            print(
                f"two ranks, {difference} differs: exit codes {[code for code, *_ in ranks]}, all stopped after "
                f"{max(seconds for *_, seconds in ranks):.1f} s, imports included"
            )


if __name__ == "__main__":
    main()
