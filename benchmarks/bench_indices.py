"""The index of a corpus in Megatron's order, and a blend: seconds and peak memory beside megatron-core, same arrays.

Lengths are drawn, no tokens are needed. Each side builds in a process of its own and writes its files, in turn. Without
megatron-core the other side is the usual way in NumPy, which gives the same arrays.

    python benchmarks/bench_indices.py --documents 100000000 --rounds 1
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from alternate import alternate

SEED = 1234
LENGTH = 2048
LONGEST = 1200
NAMES = ("document_index", "sample_index", "shuffle_index")


class Lengths:
    """A corpus of which only the lengths are known."""

    prefix = path_prefix = "drawn lengths"

    def __init__(self, documents: int):
        self.lengths = np.random.default_rng(0).integers(1, LONGEST, size=documents, dtype=np.int32)
        self.sequence_lengths = self.lengths
        self.identity = {"documents": documents}


def samples_of(corpus: Lengths, epochs: int) -> int:
    return (epochs * int(corpus.lengths.sum(dtype=np.int64)) - 1) // LENGTH


def build_ours(corpus: Lengths, epochs: int, folder: Path) -> float:
    from megascratch.data.samples.megatron_order import MegatronCorpus

    start = time.perf_counter()
    wanted = samples_of(corpus, epochs)
    source: dict = {"seq_length": LENGTH, "seed": SEED, "wanted": wanted, "cache": folder}
    MegatronCorpus(corpus, 0, len(corpus.lengths), **source)  # type: ignore[arg-type]
    return time.perf_counter() - start


def build_megatron(corpus: Lengths, epochs: int, folder: Path) -> float:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        vocab_size = 50000
        eod = 0
        pad = -1
        unique_identifiers: ClassVar[dict[str, str]] = {}

    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=LENGTH,
        blend=(["drawn"], None),
        split="1",
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        path_to_cache=str(folder),
    )
    start = time.perf_counter()
    indices = np.arange(len(corpus.lengths), dtype=np.int32)
    GPTDataset(corpus, "drawn", indices, samples_of(corpus, epochs), Split.train, config)
    return time.perf_counter() - start


def build_usual(corpus: Lengths, epochs: int, folder: Path) -> float:
    start = time.perf_counter()
    random = np.random.RandomState(SEED)
    documents = np.tile(np.arange(len(corpus.lengths), dtype=np.int32), epochs)
    random.shuffle(documents)
    ends = np.cumsum(corpus.lengths[documents], dtype=np.int64)
    tokens = np.arange(samples_of(corpus, epochs) + 1, dtype=np.int64) * LENGTH
    places = np.searchsorted(ends, tokens, side="right")
    rows = np.stack([places, tokens - np.concatenate([[0], ends])[places]], axis=1).astype(np.int32)
    order = np.arange(len(rows) - 1, dtype=np.uint32)
    random.shuffle(order)
    for name, array in zip(NAMES, (documents, rows, order), strict=True):
        np.save(folder / f"{name}.npy", array)
    return time.perf_counter() - start


BUILDERS = {"ours": build_ours, "megatron-core": build_megatron, "NumPy": build_usual}


def other_side() -> str:
    return "megatron-core" if importlib.util.find_spec("megatron") else "NumPy"


def one(side: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds and peak GiB of one build in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    numbers = ["--documents", str(args.documents), "--epochs", str(args.epochs)]
    done = subprocess.run([*command, *numbers], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def equal(folders: list[Path]) -> bool:
    """Whether both sides wrote the same arrays."""
    for name in NAMES:
        ours, theirs = (
            np.load(next(folder.rglob(f"*{name}.npy")), mmap_mode="r") for folder in folders
        )
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False
        steps = range(0, len(ours), 1 << 22)
        if any(
            not np.array_equal(ours[at : at + (1 << 22)], theirs[at : at + (1 << 22)])
            for at in steps
        ):
            return False
    return True


def indices(args: argparse.Namespace) -> None:
    sides = ("ours", other_side())
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for round_ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=args.folder) as home:
            folders = [Path(home) / side for side in sides]
            for side, folder in list(zip(sides, folders, strict=True))[:: -1 if round_ % 2 else 1]:
                folder.mkdir()
                found[side].append(one(side, args, folder))
            assert equal(folders), "the two sides made different arrays"
    print(
        f"{args.documents:,} documents, {args.epochs} epochs, samples of {LENGTH:,} tokens: equal arrays"
    )
    for side in sides:
        seconds, peak = (
            statistics.median(run[key] for run in found[side]) for key in ("seconds", "gib")
        )
        print(f"  {side:<14} {seconds:8.2f} s   {peak:6.2f} GiB at most")
    ratios = [
        theirs["seconds"] / ours["seconds"] for ours, theirs in zip(*found.values(), strict=True)
    ]
    print(f"  speed {statistics.median(ratios):.2f}x")


def blends(rounds: int) -> None:
    from megascratch.data.tokens.indices import blend

    if other_side() != "megatron-core":
        return
    from megatron.core.datasets import helpers_cpp

    samples = 1_000_000
    for sets in (2, 8, 32, 128, 512):
        weights = np.random.default_rng(0).random(sets)
        weights /= weights.sum()
        nothing = np.zeros(sets, np.int64)
        no_limits = np.full(sets, 1 << 62)

        def theirs(weights: np.ndarray = weights) -> tuple[np.ndarray, np.ndarray]:
            # as its BlendedDataset does
            which = np.zeros(samples, np.int16)
            sample = np.zeros(samples, np.int64)
            helpers_cpp.build_blending_indices(which, sample, weights, len(weights), samples, False)
            return which, sample

        ours = partial(blend, weights, nothing, no_limits, samples)
        pair = alternate(ours, theirs, rounds)
        assert all(np.array_equal(one, other) for one, other in zip(ours(), theirs(), strict=True))
        print(f"blend of {sets:>3} sets, 1,000,000 samples   {pair}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=5_000_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files go for the time being")
    parser.add_argument("--side", choices=BUILDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        seconds = BUILDERS[args.side](Lengths(args.documents), args.epochs, Path(args.folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "gib": peak}))
        return
    indices(args)
    blends(max(args.rounds, 3))


if __name__ == "__main__":
    main()
