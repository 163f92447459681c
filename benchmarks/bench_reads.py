"""Random samples of 2,048 tokens from a warm corpus, one thread, beside megatron-core's GPTDataset; then the loader.

Without megatron-core the other side is the usual way: one NumPy view per piece of a sample, joined. At the end a
consumer that takes 1 M tokens/s (it sleeps as long as its step would take) is fed by the prefetching thread, both on
one core: how long it had to wait for its batches.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from alternate import alternate

from megascratch.config.settings import DataConfig
from megascratch.data.prefetch import Prefetch
from megascratch.data.samples.build import open_splits
from megascratch.data.samples.dataset import Dataset, SingleSourceDataset
from megascratch.data.samples.microbatches import microbatches
from megascratch.data.tokens.token_files import TokenWriter

LENGTH = 2048
SEED = 1234
VOCAB = 50_000


def write(prefix: Path, documents: int, longest: int) -> str:
    random = np.random.default_rng(0)
    with TokenWriter(prefix, np.uint16) as writer:
        for length in random.integers(1, longest, size=documents).tolist():
            writer.add_document(random.integers(0, VOCAB, size=length, dtype=np.uint16))
    return str(prefix)


def megatrons(prefix: str) -> Dataset:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        vocab_size = VOCAB
        eod = 0
        pad = -1
        unique_identifiers: ClassVar[dict[str, str]] = {}

    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=LENGTH,
        blend=([prefix], None),
        split="1",
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    corpus = IndexedDataset(prefix, multimodal=False, mmap=True)
    return GPTDataset(
        corpus, prefix, np.arange(len(corpus), dtype=np.int32), None, Split.train, config
    )


class Usual:
    """Samples joined from one view per piece."""

    def __init__(self, ours: SingleSourceDataset):
        self.ours = ours

    def __getitem__(self, number: int) -> np.ndarray:
        pieces = self.ours.pieces(number).tolist()
        return np.concatenate([self.ours.source.get(*piece) for piece in pieces]).astype(np.int64)


def fed(dataset: Dataset, rate: float, steps: int) -> None:
    """One line: what a consumer of `rate` tokens a second waited for."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source = (
        microbatches(dataset, 64 * step, 8, 8, 0, 1, seq_length=LENGTH) for step in range(steps + 1)
    )
    with Prefetch(source, 2) as batches:
        next(batches)  # makes the index
        start = time.perf_counter()
        waited = 0.0
        for _ in range(steps):
            time.sleep(64 * LENGTH / rate)
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
    seconds = time.perf_counter() - start
    print(
        f"a consumer of {rate / 1e6:.0f} M tokens/s on one core with its loader: waited {waited * 1e3:.1f} ms of "
        f"{seconds:.1f} s for {steps} batches of {64 * LENGTH:,} tokens"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--longest", type=int, default=1200)
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prefix = write(Path(folder) / "corpus", args.documents, args.longest)
        data = DataConfig(data_path=[prefix], split="1", seq_length=LENGTH, data_order="megatron")
        ours = open_splits(data, seed=SEED, vocab_size=VOCAB, train_samples=1).train
        assert ours is not None
        peer = bool(importlib.util.find_spec("megatron"))
        theirs = megatrons(prefix) if peer else Usual(ours)  # type: ignore[arg-type]
        numbers = np.random.default_rng(1).integers(0, len(ours), size=args.reads).tolist()
        if peer:
            assert all(ours[n][:-1].tolist() == theirs[n]["tokens"].tolist() for n in numbers[:50])
        pair = alternate(
            lambda: [ours[n] for n in numbers], lambda: [theirs[n] for n in numbers], args.rounds
        )
        name = "megatron-core" if peer else "NumPy's usual way"
        print(
            f"{args.reads / pair.ours:,.0f} samples/s, {name} {args.reads / pair.theirs:,.0f}; {pair}",
            flush=True,
        )
        keyed = open_splits(
            DataConfig(data_path=[prefix], split="1", seq_length=LENGTH),
            seed=SEED,
            vocab_size=VOCAB,
            train_samples=1,
        ).train
        assert keyed is not None
        start = time.perf_counter()
        steps = 30
        for step in range(steps):
            microbatches(keyed, 64 * step, 8, 8, 0, 1, seq_length=LENGTH)
        tokens = steps * 64 * LENGTH / (time.perf_counter() - start)
        print(
            f"loader, one core: {tokens / 1e6:.1f} M tokens/s in micro-batches of 8, the first index included"
        )
        for rate in (1e6, 4e6):
            fed(keyed, rate, steps=int(10 * rate) // (64 * LENGTH))


if __name__ == "__main__":
    main()
