"""Checkpoints beside torch.distributed.checkpoint: what a save costs training, and how long a whole save and load take.

    python benchmarks/bench_checkpoint.py [--folder DIR] [--rounds 7]

The state of the 25 M Llama (weights and both moments, fp32), in one process and held twice by two data-parallel ranks.

stall    `AsyncSaver.start` of an asynchronous save, which returns when training may go on, against one `copy_` of
         as many bytes from one flat tensor to another; the save itself ends outside of the clock.
save     `checkpoint.save` against `torch.distributed.checkpoint.save` with its FileSystemWriter, each into new folders;
         both force their files to the disk, ours takes a checksum of every byte, too.
load     `checkpoint.load` against `torch.distributed.checkpoint.load` with its FileSystemReader, in place, from files
         that the system has in memory; ours checks every checksum and that nothing is missing.

Both sides run in turn in the same processes. --threads is the peer's number of writing threads (its default is 1).
"""

import argparse
import shutil
import tempfile
from functools import partial
from itertools import count
from pathlib import Path

import llama_25m as llama
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from alternate import Pair, alternate
from ranks import RANKS, fresh

from megascratch import checkpoint
from megascratch.checkpoint import AsyncSaver
from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.parallel.mesh import Mesh, second_control
from megascratch.training.trainer import Trainer
from megascratch.verification.pool import mesh_of


class Contest:
    """The state of a rank, and both sides' ways to keep it."""

    def __init__(self, folder: Path, threads: int):
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        mesh = mesh_of(dp=ranks) if ranks > 1 else Mesh.alone()
        settings = llama.SETTINGS | {"global_batch_size": ranks, "train_iters": 1}
        self.trainer = Trainer(resolve(with_fields(Config(), settings), ranks), mesh)
        self.world = mesh.world
        self.own = second_control(mesh)
        self.folder = folder
        self.threads = threads
        self.held = self.trainer.held()
        self.plain = {item.name: item.tensor.clone() for item in self.held}
        self.numbers = count(1)

    def stall(self, rounds: int) -> Pair:
        saver = AsyncSaver(self.folder / "async", self.own)
        saver.prepare(self.held)
        assert saver._staging is not None
        flat = torch.ones(saver._staging.nbytes, dtype=torch.uint8)
        room = torch.zeros_like(flat)

        def copy() -> None:
            room.copy_(flat)

        def start() -> None:
            saver.start(next(self.numbers), self.held, {})

        return alternate(start, copy, rounds, between=saver.wait)

    def save(self) -> None:
        checkpoint.save(self.folder / "ours", next(self.numbers), self.held, {}, self.own)

    def peer_save(self) -> None:
        path = self.folder / "theirs" / str(next(self.numbers))
        dcp.save(
            self.plain,
            storage_writer=dcp.FileSystemWriter(path, thread_count=self.threads),
            no_dist=self.alone,
        )

    def load(self, path: Path) -> None:
        checkpoint.load(path, self.held, self.own)

    def peer_load(self, path: Path) -> None:
        dcp.load(self.plain, storage_reader=dcp.FileSystemReader(path), no_dist=self.alone)

    @property
    def alone(self) -> bool:
        return self.world.size == 1


def contest(folder: Path, rounds: int, threads: int) -> tuple[int, dict[str, Pair]]:
    """On each rank: bytes of the state, and the three comparisons."""
    both = Contest(folder, threads)
    nbytes = sum(tensor.nbytes for tensor in both.plain.values())
    found = {
        "stall": both.stall(rounds),
        "save": alternate(both.save, both.peer_save, rounds, warmup=1),
    }
    ours = checkpoint.list_steps(folder / "ours")[0]
    theirs = max((folder / "theirs").iterdir(), key=lambda path: path.name)
    found["load"] = alternate(
        partial(both.load, ours), partial(both.peer_load, theirs), rounds, warmup=1
    )
    return nbytes, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", help="where to write; default: the system's folder of temporary files"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, run in (
        ("one process", lambda *args: [contest(*args)]),
        (f"{RANKS} ranks", partial(fresh, contest)),
    ):
        folder = Path(tempfile.mkdtemp(prefix="bench-checkpoint-", dir=options.folder))
        try:
            nbytes, found = run(folder, options.rounds, options.threads)[0]
        finally:
            shutil.rmtree(folder)
        print(f"{name}, {nbytes / 2**20:,.0f} MiB of state")
        for what, pair in found.items():
            print(
                f"  {what:<6}{pair}"
                + (f"   blocks {1 / pair.ratio:.3f}x the copy" if what == "stall" else "")
            )


if __name__ == "__main__":
    main()
