"""Where a direct exchange beats gloo's rings: collectives of `parallel.collectives` beside torch.distributed's own, in
turn, at several sizes and numbers of ranks of this machine.

    python benchmarks/bench_collectives.py --ranks 2 4 8

Prints the median of their ratio: above 1 ours is faster. The limits in `parallel/gloo.py` come from this table.
"""

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from alternate import Pair, alternate

from megascratch.parallel import collectives
from megascratch.verification.pool import Pool, mesh_of

# of the whole: what is summed, gathered or scattered
BYTES = [
    1 << 11,
    1 << 14,
    1 << 17,
    1 << 20,
    1 << 23,
]


def compare(ranks: int, size: int, rounds: int) -> dict[str, Pair]:
    """On a rank: each collective of `size` bytes in all."""
    axis = mesh_of(dp=ranks).dp
    whole = torch.zeros(size // 4)
    part = torch.zeros(size // 4 // ranks)
    calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "all_reduce": (
            lambda: collectives.start_all_reduce(whole, axis).wait(),
            lambda: dist.all_reduce(whole),
        ),
        "all_gather": (
            lambda: collectives.start_all_gather(part, axis, whole).wait(),
            lambda: dist.all_gather_into_tensor(whole, part),
        ),
        "reduce_scatter": (
            lambda: collectives.start_reduce_scatter(whole, axis, part).wait(),
            lambda: dist.reduce_scatter_tensor(part, whole),
        ),
    }
    return {
        name: alternate(_many(ours), _many(theirs), rounds)
        for name, (ours, theirs) in calls.items()
    }


def _many(call: Callable[[], object]) -> Callable[[], object]:
    """Ranks start a single call at different times; behind one another calls show what a step feels."""
    return lambda: [call() for _ in range(20)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = Pool(timeout=300)
    for ranks in args.ranks:
        for size in BYTES:
            pairs = pool.run(ranks, compare, ranks, size, args.rounds)[0]
            row = "   ".join(f"{name} {pair.ratio:5.2f}" for name, pair in pairs.items())
            print(f"{ranks} ranks {size / 1024:8,.0f} KiB   {row}", flush=True)
    pool.close()


if __name__ == "__main__":
    main()
