"""Starts one rank of a world of any size in one process, and reports what its start asks of the world.

    python -m tools.simulated_start --world 8 1024 16384 --rank 5 --tensor-model-parallel-size 2

The rank's own program runs: settings, preflight check, process groups, model (without memory), the division of a save,
and with --resume-from a resume. The other ranks are played by `tools/simulated_world.py`. Words that are not flags of
this command are settings, as for `megascratch pretrain`, on top of a tiny model unless --config names another one. A
corpus or a tokenizer that is named and not on this machine is not asked for.
It shows, without a cluster, whether a start still holds at another size: what a rank asks may grow with the length of
its own lines (the axes of the layout), not with the world.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from megascratch.checkpoint import load, read_manifest
from megascratch.checkpoint.write_plan import agree_on_write_plan
from megascratch.config.errors import Problems, UserError
from megascratch.config.fields import flat, with_fields
from megascratch.config.layout import Layout
from megascratch.config.load import read_config
from megascratch.config.settings import Config
from megascratch.data.tokens.token_files import idx_path
from megascratch.dry_run.settings import imagined_run
from megascratch.model.table import weight_table
from megascratch.parallel.mesh import Mesh, second_control
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.training.start.agree import agree
from megascratch.training.start.files import named_corpora
from megascratch.training.start.settings import LegalSettings, legal_settings
from megascratch.training.trainer import Trainer
from tools.simulated_world import (
    CountedGroups,
    Counts,
    PlayedControl,
    PlayedStore,
    counted_reads,
)
from tools.synthetic_checkpoint import held_by_rank, write_checkpoint

TINY = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "make_vocab_size_divisible_by": 8,
    "seq_length": 16,
    "lr": 0.01,
    "bf16": True,
}
SOURCES = ("data_path", "train_data_path", "valid_data_path", "test_data_path")
STATUS = Path("/proc/self/status")
COLUMNS = ("world", "part", "store calls", "store bytes", "groups", "sockets", "messages")
MORE_COLUMNS = ("object bytes", "MiB", "seconds")


@dataclass(frozen=True)
class Part:
    """What one part of a start has asked of the world, and what it took."""

    name: str
    store_calls: int
    store_bytes: int
    groups: int
    sockets: int
    """Connections to other ranks."""
    messages: int
    """Sent or received."""
    object_bytes: int
    """Sent or received on the control plane."""
    peak_mib: float | None
    """MiB by which the memory of the process grew at most; None where the system does not say it."""
    seconds: float


@dataclass
class SimulatedStart:
    """The start of one rank."""

    world: int
    rank: int
    parts: list[Part] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    """Name of each process group -> number of its members."""
    keys: int = 0
    """How many keys of the store the rank has written."""
    read: dict[str, int] = field(default_factory=dict)
    """Bytes that were read from the checkpoint: from its manifest (.json), table of chunks (.bin) and data files."""


@dataclass
class Answers:
    """What the first rank answers for others: in the store, and on the control plane."""

    store: dict[str, bytes] = field(default_factory=dict)
    said: list[bytes] = field(default_factory=list)


def simulated_start(
    words: Sequence[str],
    world: int,
    rank: int,
    ranks_per_machine: int = 8,
    checkpoint: Path | None = None,
    answers: Answers | None = None,
) -> SimulatedStart:
    """The start of `rank` in a world of so many ranks.

    Args:
        words: settings, as for `megascratch pretrain`; on top of a tiny model, unless they name a file (--config). Data
            and the length of the run may be left out.
        checkpoint: a step that the rank resumes from (`written_by`).
        answers: those of the first rank (`answers_of_first`); None: the first rank starts before, in this process.

    Raises: UserError if the layout does not fit the world, or the world does not have the rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(words, world, rank, folder)
        if answers is None:
            answers = Answers()
            if rank != 0:
                _started(settings, 0, ranks_per_machine, answers, checkpoint)
        return _started(settings, rank, ranks_per_machine, answers, checkpoint)


def answers_of_first(
    words: Sequence[str], world: int, ranks_per_machine: int, checkpoint: Path | None
) -> Answers:
    """What the first rank of that world answers."""
    answers = Answers()
    simulated_start(words, world, 0, ranks_per_machine, checkpoint, answers)
    return answers


def written_by(words: Sequence[str], ranks: int, folder: Path) -> Path:
    """A step as a run of so many ranks would have written it, with zeros for all data that take no room on a disk.

    Raises: UserError if the layout does not fit so many ranks.
    """
    base = Config() if "--config" in words else with_fields(Config(), TINY)
    loaded = read_config(words, base)
    config = imagined_run(loaded, ranks, "cpu").config
    table = weight_table(config.model, config.parallel, Layout.of(config.parallel))
    held = (held_by_rank(config, rank, table) for rank in range(ranks))
    return write_checkpoint(folder, 1, held, {})


def _settings(words: Sequence[str], world: int, rank: int, folder: str) -> LegalSettings:
    """The settings of the rank. Raises: as `simulated_start`."""
    if world < 1:
        raise UserError(f"--world ({world}) must be at least 1")
    if not 0 <= rank < world:
        raise UserError(
            f"--rank ({rank}) must be from 0 to {world - 1}: the world has {world} ranks"
        )
    base = Config() if "--config" in words else with_fields(Config(), TINY)
    loaded = read_config(words, base)
    given = flat(loaded.config)
    changes: dict[str, Any] = {"output_dir": folder, "device": "cpu"}
    if not any(idx_path(prefix).exists() for prefix in named_corpora(given)):
        changes |= dict.fromkeys([*SOURCES, "split"]) | {"mock_data": True}
    file = given["tokenizer_model"] or given["vocab_file"] or ""
    if given["vocab_size"] is not None and not os.path.exists(file):
        changes |= dict.fromkeys(("tokenizer_model", "vocab_file", "merge_file"))
    if given["train_iters"] is None and given["train_samples"] is None:
        changes["train_iters"] = 1_000_000  # more than any warm-up
    return legal_settings(loaded._replace(config=with_fields(loaded.config, changes)), world)


def _started(
    settings: LegalSettings,
    rank: int,
    ranks_per_machine: int,
    answers: Answers,
    checkpoint: Path | None,
) -> SimulatedStart:
    """The start of a rank. The first rank adds to the answers, the others read them."""
    world = settings.world_size
    counts = Counts()
    start = SimulatedStart(world, rank)
    local_rank = rank % ranks_per_machine
    store = PlayedStore(rank, counts, answers.store, first_of_machine=local_rank == 0)
    meeting = Rendezvous(store, rank, world, timedelta(minutes=1))

    def take(name: str, part: Callable[[], Any]) -> Any:
        with _measured(name, counts, start):
            return part()

    def connected() -> Mesh:
        groups = CountedGroups(rank, world, counts)
        tied = not settings.config.model.untie_embeddings_and_output_weights
        mesh = Mesh.build(Layout.of(settings.config.parallel), "meta", groups, tied)
        second_control(mesh)
        return replace(mesh, control=PlayedControl(mesh.control, counts, answers.said))

    with _environment(rank, world, local_rank, ranks_per_machine):
        ready = take("compare", lambda: agree(settings, Problems(), meeting))
        mesh = take("process groups", connected)
        trainer = take("model", lambda: Trainer(ready.inputs.config, mesh, ready.inputs.schedule))
        take("plan of a save", lambda: agree_on_write_plan(trainer.held(), mesh.control))
        if checkpoint is not None:
            held = _in_memory(trainer.held())
            with counted_reads(counts):
                take("resume", lambda: load(checkpoint, held, mesh.control))
    if rank == 0:
        answers.store.update(store.written)
    start.lines = counts.lines
    start.keys = len(counts.keys)
    start.read = dict(counts.read)
    return start


def _in_memory(held: Sequence[ShardedTensor]) -> list[ShardedTensor]:
    """The same boxes with memory of their own."""
    loaded = []
    for item in held:
        loaded.append(replace(item, tensor=torch.zeros_like(item.tensor, device="cpu")))
    return loaded


@contextmanager
def _environment(rank: int, world: int, local_rank: int, ranks_per_machine: int) -> Iterator[None]:
    """The variables that a launcher sets for a rank."""
    variables = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": min(ranks_per_machine, world),
    }
    with patch.dict(os.environ, {name: str(value) for name, value in variables.items()}):
        yield


@contextmanager
def _measured(name: str, counts: Counts, start: SimulatedStart) -> Iterator[None]:
    """Adds a part to the start: what was counted, and the memory and time that were used."""
    before = _totals(counts)
    resident = _restart_peak()
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    peak = None if resident is None else (_kib("VmHWM") - resident) / 1024
    grown = [after - earlier for after, earlier in zip(_totals(counts), before, strict=True)]
    start.parts.append(Part(name, *grown, peak, seconds))


def _totals(counts: Counts) -> list[int]:
    calls = counts.calls
    store_calls = sum(calls.values()) - calls["groups"] - calls["messages"]
    return [
        store_calls,
        counts.nbytes["store"],
        calls["groups"],
        counts.sockets,
        calls["messages"],
        counts.nbytes["objects"],
    ]


def _restart_peak() -> int | None:
    """KiB that the process has now, from which its highest mark starts again; None where it is not known."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _kib("VmRSS")
    except OSError:
        return None


def _kib(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{STATUS} has no {name}")


def table(starts: Sequence[SimulatedStart]) -> str:
    """One line for each part of each start."""
    rows: list[tuple[str, ...]] = [(*COLUMNS, *MORE_COLUMNS)]
    for start in starts:
        for part in start.parts:
            numbers = (
                part.store_calls,
                part.store_bytes,
                part.groups,
                part.sockets,
                part.messages,
                part.object_bytes,
            )
            memory = "-" if part.peak_mib is None else f"{part.peak_mib:,.1f}"
            counted = [f"{number:,}" for number in numbers]
            rows.append((f"{start.world:,}", part.name, *counted, memory, f"{part.seconds:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[1] = row[1].ljust(widths[1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Prints the table, or JSON; 2 if the world cannot start."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=int, nargs="+", default=[8, 1024, 16384])
    parser.add_argument("--rank", type=int, default=5)
    parser.add_argument("--ranks-per-machine", type=int, default=8)
    parser.add_argument(
        "--resume-from",
        type=int,
        metavar="RANKS",
        help="resume from a step of zeros of so many ranks",
    )
    parser.add_argument("--checkpoint", type=Path, help="resume from this step, written before")
    parser.add_argument("--json", action="store_true")
    own, words = parser.parse_known_args(argv)
    try:
        if own.ranks_per_machine < 1:
            raise UserError(f"--ranks-per-machine ({own.ranks_per_machine}) must be at least 1")
        for world in own.world:
            _settings(words, world, own.rank, ".")
        if own.resume_from is not None:
            _settings(words, own.resume_from, 0, ".")
    except UserError as error:
        print(f"simulated_start: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        if own.resume_from is not None:
            own.checkpoint = written_by(words, own.resume_from, Path(folder))
        if len(own.world) == 1:
            world = own.world[0]
            answers = None
            if own.rank != 0:  # in another process: its memory is not this rank's
                first = (words, world, own.ranks_per_machine, own.checkpoint)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    answers = pool.apply(answers_of_first, first)
            starts = [
                simulated_start(
                    words, world, own.rank, own.ranks_per_machine, own.checkpoint, answers
                )
            ]
        else:
            starts = [_in_a_process(own, world, words) for world in own.world]
        if own.json:
            print(json.dumps([asdict(start) for start in starts]))
            return 0
        print(table(starts))
        if own.checkpoint is not None:
            print(f"resumed from {_contents(own.checkpoint)}")
    return 0


def _contents(checkpoint: Path) -> str:
    manifest = read_manifest(checkpoint)
    chunks = sum(tensor.chunks for tensor in manifest.tensors.values())
    return f"{chunks:,} chunks of {len(manifest.tensors):,} tensors in {manifest.number_of_files:,} files"


def _in_a_process(own: argparse.Namespace, world: int, words: Sequence[str]) -> SimulatedStart:
    """The start in a world, in a process of its own, whose memory no other start has used."""
    flags = ["--world", world, "--rank", own.rank, "--ranks-per-machine", own.ranks_per_machine]
    if own.checkpoint is not None:
        flags += ["--checkpoint", own.checkpoint]
    command = [sys.executable, "-m", "tools.simulated_start", *map(str, flags), "--json", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (record,) = json.loads(done.stdout)
    parts = [Part(**part) for part in record.pop("parts")]
    return SimulatedStart(parts=parts, **record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
