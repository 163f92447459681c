"""The peak memory of a rank: what the dry run says, beside what a real process needed on this machine's CPU.

    python benchmarks/bench_memory.py [NAME ...]

Each rank of 12 layouts trains one step, with one thread, over gloo, and needs at least 1 GiB for it. What it needed is
the highest mark of its resident set, less that after a rehearsal with a small model. The allocator is told to give
every tensor pages of its own, so that what is freed leaves the resident set at once. Beside it stands the dry run of
the same rank, with the parts of memory at its peak. It ends with code 1 where the two are more than 3 % apart.
"""

import argparse
import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import validate
from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedConfig, resolve
from megascratch.config.settings import Config
from megascratch.dry_run.memory import MemoryReport
from megascratch.dry_run.run import run_rank
from megascratch.dry_run.settings import ImaginedRun
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import Pool, mesh_for
from megascratch.verification.run_layout import synthetic_batch

TOLERANCE = 0.03
LEAST = 1 << 30  # bytes that a rank must need
LLAMA: dict[str, Any] = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "num_query_groups": 4,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
}
BF16 = {"bf16": True}
FP64 = {"fp64": True}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
DOCUMENTS = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}
TP = {"tensor_model_parallel_size": 2}
SP = {**TP, "sequence_parallel": True}
PP = {"pipeline_model_parallel_size": 2}
DP = {"data_parallel_size": 2}
ZERO1 = {**DP, "use_distributed_optimizer": True}
LONG = {"seq_length": 512, "max_position_embeddings": 512}

CASES: dict[str, dict[str, Any]] = {
    "llama fp32, long": {**LLAMA, **LONG, "micro_batch_size": 11},
    "gpt fp32, dropout, selective": {
        **DROPOUT,
        "recompute_granularity": "selective",
        "num_layers": 2,
        "micro_batch_size": 56,
    },
    "llama bf16, documents": {**LLAMA, **BF16, **DOCUMENTS, "micro_batch_size": 26},
    "gpt fp64, full recomputation": {
        **FP64,
        "recompute_granularity": "full",
        "vocab_size": 65536,
        "micro_batch_size": 6,
    },
    "llama fp32, tp 2, sp": {**LLAMA, **SP, **LONG, "micro_batch_size": 22},
    "gpt bf16, tp 2": {**BF16, **TP, "micro_batch_size": 64},
    "llama fp32, pp 2, 1f1b": {**LLAMA, **PP, "micro_batch_size": 27},
    "gpt fp32, pp 2, interleaved": {
        **PP,
        "num_virtual_stages_per_pipeline_rank": 2,
        "micro_batch_size": 21,
    },
    "llama fp32, pp 2, zb_h1": {
        **LLAMA,
        **PP,
        "pipeline_schedule": "zb_h1",
        "micro_batch_size": 17,
    },
    "llama bf16, dp 2, zero1": {
        **LLAMA,
        **BF16,
        **ZERO1,
        "vocab_size": 32768,
        "micro_batch_size": 13,
    },
    "gpt fp32, dp 2, ddp, dropout": {
        **DP,
        "hidden_dropout": 0.1,
        "vocab_size": 32768,
        "micro_batch_size": 11,
    },
    "llama fp32, tp 2, pp 2, sp, documents": {
        **LLAMA,
        **SP,
        **PP,
        **DOCUMENTS,
        "micro_batch_size": 64,
    },
}
BASE = with_fields(
    Config(),
    {
        "num_layers": 16,
        "hidden_size": 128,
        "num_attention_heads": 8,
        "vocab_size": 8192,
        "make_vocab_size_divisible_by": 128,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_length": 256,
        "max_position_embeddings": 256,
        "micro_batch_size": 6,
        "lr": 1e-4,
        "lr_decay_style": "constant",
        "mock_data": True,
        "train_iters": 1,
        "seed": 7,
    },
)
SMALL = {"hidden_size": 64, "vocab_size": 512}


def config_of(settings: dict[str, Any]) -> ResolvedConfig:
    """A step has one micro-batch for each stage of a data rank."""
    config = with_fields(BASE, settings)
    stages = config.parallel.pipeline_model_parallel_size
    data_ranks = config.parallel.data_parallel_size or 1
    batch = config.training.micro_batch_size * stages * data_ranks
    config = with_fields(config, {"global_batch_size": batch})
    world = Layout.of(config.parallel).world
    validate(flat(config), world)
    return resolve(config, world)


def needed(settings: dict[str, Any]) -> int:
    """On a rank: bytes by which the resident set grew at most, from before the trainer is made through a step."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 0)  # M_TRIM_THRESHOLD
    train(config_of({**settings, **SMALL}))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    before = resident("VmRSS")
    train(config_of(settings))
    return resident("VmHWM") - before


def train(config: ResolvedConfig) -> None:
    size = config.training.micro_batch_size
    batches = []
    for start in range(0, config.parallel.pipeline_model_parallel_size * size, size):
        numbers = range(start, start + size)
        batches.append(synthetic_batch(config.data, config.model.vocab_size, numbers))
    Trainer(config, mesh_for(Layout.of(config.parallel))).train_step(batches, config.optim.lr)


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def compare(name: str) -> bool:
    """Prints the rows of one case; whether every rank is within the tolerance and large enough."""
    config = config_of(CASES[name])
    world = Layout.of(config.parallel).world
    pool = Pool(timeout=600)
    try:
        real = pool.run(world, needed, CASES[name])
    finally:
        pool.close()
    close = True
    for rank, bytes_needed in enumerate(real):
        memory: MemoryReport = run_rank(ImaginedRun(config, None, "cpu", []), rank).memory
        apart = memory.peak / bytes_needed - 1
        parts = [f"{part} {mib(size)}" for part, size in memory.at_peak.items() if size >> 20]
        print(
            f"{name:38} rank {rank}  real {mib(bytes_needed):>5} MiB  dry run {mib(memory.peak):>5} MiB  {apart:+7.2%}"
            f"  at {memory.peak_action}: {', '.join(parts)}",
            flush=True,
        )
        close = close and abs(apart) <= TOLERANCE and bytes_needed >= LEAST
    return close


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases; default: all")
    names = parser.parse_args().names or list(CASES)
    close = [compare(name) for name in names]
    print(
        f"{sum(close)} of {len(close)} cases within {TOLERANCE:.0%}, with at least 1 GiB on every rank"
    )
    return 0 if all(close) else 1


if __name__ == "__main__":
    sys.exit(main())
