"""The time to draw a rank's initial weights, next to the algorithm that drew them in blocks of whole rows before.

    column-parallel   a rank holds 1/tp of the rows       row-parallel   1/tp of the columns
    one process       all of it

The peer is that algorithm as it was, on one thread, with a whole fp64 copy of what it drew. Process times: the sum over
all threads, so that more threads are no advantage; `--threads` shows the time on the clock with them.
"""

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from megascratch.parallel.initial_values import fill_all, normal_blocks
from megascratch.parallel.shard import Box

TP = 8
STD = 0.02


def normal_rows(seed: int, name: str, shape: tuple[int, int], box: Box) -> np.ndarray:
    """float32 N(0, 1) in blocks of 65,536 elements that are whole rows: a rank with a part of the columns draws all."""
    rows, width = shape
    rows_per_block = max(1, (1 << 16) // width)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    row_numbers = np.arange(rows)[box.slices[0]]
    block_numbers = row_numbers // rows_per_block
    out = np.empty(box.shape, np.float32)
    for block in np.unique(block_numbers):
        stream = np.random.Generator(np.random.Philox(key=key, counter=int(block) << 64))
        drawn = stream.standard_normal((rows_per_block, width), np.float32)[:, box.slices[1]]
        mine = block_numbers == block
        out[mine] = drawn[row_numbers[mine] % rows_per_block]
    return out


def before(shape: tuple[int, int], box: Box, weight: Tensor) -> None:
    wide = torch.from_numpy(normal_rows(1, "w", shape, box)).to(torch.float64) * STD
    weight[:] = wide.to(weight)


def now(shape: tuple[int, int], box: Box, weight: Tensor) -> None:
    fill_all(normal_blocks(1, "w", shape, box, weight, STD))


def seconds(action: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    action()
    return clock() - start


def measure(
    shape: tuple[int, int], box: Box, dtype: torch.dtype, rounds: int, clock: Callable[[], float]
) -> str:
    weight = torch.empty(box.shape, dtype=dtype)
    times = []
    for _ in range(rounds + 1):
        old = seconds(lambda: before(shape, box, weight), clock)
        new = seconds(lambda: now(shape, box, weight), clock)
        times.append((old, new))
    times = times[1:]  # the first touches the memory
    low, middle, high = statistics.quantiles([old / new for old, new in times], n=4)
    old, new = (statistics.median(side) for side in zip(*times, strict=True))
    return (
        f"before {old * 1e3:8.1f} ms   now {new * 1e3:8.1f} ms   "
        f"{middle:.2f} times as fast (quartiles {low:.2f} to {high:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, help="time by the clock on so many threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or 1)
    clock = time.perf_counter if args.threads else time.process_time
    size = args.size
    shape = (size, size)
    boxes = {
        f"row-parallel, tp {TP}": Box((0, size // TP), (size, 2 * size // TP)),
        f"column-parallel, tp {TP}": Box((size // TP, 0), (2 * size // TP, size)),
        "one process": Box((0, 0), shape),
    }
    for name, box in boxes.items():
        told = measure(shape, box, getattr(torch, args.dtype), args.rounds, clock)
        print(f"{name:<22} {size} x {size} {args.dtype}   {told}", flush=True)
    small = (128, 384)
    told = measure(small, Box((0, 0), small), torch.float32, 20 * args.rounds, clock)
    print(f"{'one process':<22} 128 x 384 float32   {told}", flush=True)


if __name__ == "__main__":
    main()
