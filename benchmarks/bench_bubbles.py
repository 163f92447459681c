"""Published bubbles beside what the simulator plays with the published times of the stages.

    python benchmarks/bench_bubbles.py --table FILE.csv

A row of the table is a cell of arXiv 2401.10241, Table 5, with the times of its Table 9. Columns: model, layers, p,
num_microbatches, schedule (1F1B, 1F1B-I, ZB-H1, ZB-H2; others are not read), bubble_rate, T_F_ms, T_B_ms, T_W_ms,
T_comm_ms. As there, first and last stage have one layer less, and 1F1B-I has one layer in a chunk and is played with
the communication of its steady state overlapped. Exit code 1 if a cell is off by more than --within.
"""

import argparse
import csv
import sys

from megascratch.pipeline.passes import compile_order
from megascratch.pipeline.simulate import overlapped, simulate, uniform

SCHEDULES = {"1F1B": "1f1b", "1F1B-I": "interleaved", "ZB-H1": "zb_h1", "ZB-H2": "zb_h2"}


def played(row: dict[str, str]) -> float:
    """The bubble of one cell."""
    schedule = SCHEDULES[row["schedule"]]
    stages = int(row["p"])
    microbatches = int(row["num_microbatches"])
    chunks = (int(row["layers"]) + 2) // stages if schedule == "interleaved" else 1
    f, b, w, transfer = (float(row[f"T_{name}_ms"]) for name in ("F", "B", "W", "comm"))
    cost = uniform(F=f / chunks, B=(b + w) / chunks, I=b / chunks, W=w / chunks, transfer=transfer)
    orders = compile_order(schedule, stages, microbatches, chunks)
    return simulate(
        orders, overlapped(cost, chunks) if schedule == "interleaved" else cost
    ).bubble_rate


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True, metavar="FILE")
    parser.add_argument(
        "--within", type=float, default=1e-4, help="that a cell may be off by (default: 1e-4)"
    )
    args = parser.parse_args()
    with open(args.table, encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["bubble_rate"] and row["schedule"] in SCHEDULES
        ]
    off = 0
    for row in rows:
        published = float(row["bubble_rate"])
        found = played(row)
        wrong = abs(found - published) > args.within
        off += wrong
        print(
            f"{row['model']:>6} p {row['p']:>2} m {row['num_microbatches']:>3} {row['schedule']:<7} "
            f"published {published:.4f} played {found:.6f} off by {found - published:+.6f}{' WRONG' * wrong}"
        )
    print(f"{len(rows) - off} of {len(rows)} cells within {args.within:g}")
    return 1 if off or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
