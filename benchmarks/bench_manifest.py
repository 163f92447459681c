"""Memory, time and bytes read of a save's plan and of a resume of one rank among a thousand and more.

    python benchmarks/bench_manifest.py [--folder DIR] [--tp 8 --pp 8 --dp 16]

A checkpoint of a model with the names of Llama-3 405B (128 layers, narrow), as all ranks of the layout would write it
in bf16 with ZeRO-1: the real table of chunks, and data files of zeros. Then, each in a process of its own:

plan     rank R divides what it holds among the holders
resume   rank R loads; also the first rank, which alone reads the whole table, and every rank of a step of format 2

MiB      peak of resident memory, less that before; the tensors of the rank are made before
bytes    read from the manifest, from the table of chunks, and from the rank's own files
"""

# ruff: noqa: E402  (tests and tools are imported from the repository, which is put on the path first)

import argparse
import multiprocessing
import operator
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megascratch import checkpoint
from megascratch.checkpoint.backend.local import LocalFile
from megascratch.checkpoint.write_plan import own_chunks
from megascratch.config.fields import with_fields
from megascratch.config.layout import Layout
from megascratch.config.resolve import ResolvedConfig, resolve
from megascratch.config.settings import Config
from megascratch.model.table import weight_table
from megascratch.parallel.control import Control
from tests.support.format_2 import to_format_2
from tools.synthetic_checkpoint import held_by_rank, write_checkpoint

MODEL = {
    "mock_data": True,
    "vocab_size": 2048,
    "num_layers": 128,
    "hidden_size": 512,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 16,
    "num_query_groups": 8,
    "swiglu": True,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": True,
    "add_bias_linear": False,
    "bf16": True,
    "use_distributed_optimizer": True,
    "ddp_bucket_size": 36_000,  # so many buckets that a rank writes 300 chunks
    "device": "cpu",
}


class OneOfMany(Control):
    """The control plane of one rank whose peers want whatever it does not."""

    def __init__(self, rank: int, size: int):
        super().__init__(rank, size, [])

    @property
    def is_first(self) -> bool:
        return True  # it does itself what it would hear from the first rank

    def reduce(self, item: Any, combine: Callable[[Any, Any], Any]) -> Any:
        return -1 if combine is operator.or_ else item

    def broadcast(self, item: Any) -> Any:
        return item


def resume(config: ResolvedConfig, step: Path, rank: int) -> tuple[float, float, str]:
    """MiB, seconds and what was read."""
    world = Layout.of(config.parallel).world
    held = held_by_rank(config, rank, device="cpu")
    read: Counter[str] = Counter()
    plain = LocalFile.read_into

    def counted(self: LocalFile, offset: int, *parts: memoryview) -> None:
        read[self.path.suffix] += sum(map(len, parts))
        plain(self, offset, *parts)

    LocalFile.read_into = counted  # type: ignore[method-assign]
    mib, seconds = measured(lambda: checkpoint.load(step, held, OneOfMany(rank, world)))
    told = (
        f"manifest {read['.json']:,}, table {read['.bin']:,}, data {read['.safetensors']:,} bytes"
    )
    return mib, seconds, told


def plan(config: ResolvedConfig, step: Path, rank: int) -> tuple[float, float, str]:
    held = held_by_rank(config, rank)
    mib, seconds = measured(lambda: own_chunks(held))
    return mib, seconds, f"{len(held):,} boxes held"


def measured(action: Callable[[], Any]) -> tuple[float, float]:
    """How much the peak of this process grows, in MiB, and seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    before = peak()
    begun = time.perf_counter()
    action()
    return peak() - before, time.perf_counter() - begun


def peak() -> float:
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 2**10


def write(config: ResolvedConfig, folder: Path) -> tuple[float, float, Path]:
    layout = Layout.of(config.parallel)
    table = weight_table(config.model, config.parallel, layout)
    ranks = (held_by_rank(config, rank, table) for rank in range(layout.world))
    paths = []
    mib, seconds = measured(
        lambda: paths.append(write_checkpoint(folder, 1, ranks, {"train_state": {"step": 1}}))
    )
    return mib, seconds, paths[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="for the checkpoint (default: a temporary one)")
    parser.add_argument("--tp", type=int, default=8)
    parser.add_argument("--pp", type=int, default=8)
    parser.add_argument("--dp", type=int, default=16)
    options = parser.parse_args()
    world = options.tp * options.pp * options.dp
    settings = MODEL | {
        "tensor_model_parallel_size": options.tp,
        "pipeline_model_parallel_size": options.pp,
        "data_parallel_size": options.dp,
        "pipeline_model_parallel_layout": None,
        "global_batch_size": options.dp * options.pp,
    }
    config = resolve(with_fields(Config(), settings), world)
    folder = Path(tempfile.mkdtemp(prefix="manifest-", dir=options.folder))
    try:
        report(config, folder, world)
    finally:
        shutil.rmtree(folder)


def report(config: ResolvedConfig, folder: Path, world: int) -> None:
    mib, seconds, step = in_process(partial(write, config, folder))
    manifest = checkpoint.read_manifest(step)
    chunks = sum(tensor.chunks for tensor in manifest.tensors.values())
    size = (step / "manifest.json").stat().st_size
    print(
        f"{world:,} ranks: {chunks:,} chunks of {len(manifest.tensors):,} tensors in "
        f"{manifest.number_of_files:,} files; manifest {size:,} bytes, table {manifest.table_bytes:,} bytes; "
        f"written by one process in {seconds:.0f} s, {mib:,.0f} MiB"
    )
    middle = world // 2 + 1
    rows = [
        (f"plan, rank {middle}", plan, middle),
        (f"resume, rank {middle}", resume, middle),
        ("resume, first rank", resume, 0),
    ]
    for name, action, rank in rows:
        print_row(name, *in_process(partial(action, config, step, rank)))
    in_process(partial(to_format_2, step))
    size = (step / "manifest.json").stat().st_size
    print(f"the same in format 2, manifest {size:,} bytes")
    print_row("resume, the rank that parses it", *in_process(partial(resume, config, step, 0)))


def print_row(name: str, mib: float, seconds: float, told: str) -> None:
    print(f"{name:<32} {mib:8,.1f} MiB {seconds:8.3f} s   {told}")


def in_process(action: Callable[[], Any]) -> Any:
    """The result of an action in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(action)


if __name__ == "__main__":
    main()
