"""Writes random valid pipeline schedules as CSV files, as a user might write them for --pipeline-schedule-csv."""

import atexit
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from megascratch.pipeline.csv_schedule import write_table
from megascratch.pipeline.schedule import Action, Placement


def random_schedule_file(stream: random.Random, placement: Placement, microbatches: int) -> str:
    """The path of a new file, which is deleted when this process ends."""
    folder = _folder()
    file = folder / f"order-{len(list(folder.iterdir()))}.csv"
    file.write_text(write_table(random_schedules(stream, placement, microbatches), placement, compute_only=True))
    return str(file)


def random_schedules(stream: random.Random, placement: Placement, microbatches: int) -> list[list[Action]]:
    """The orders of all ranks, compute actions only. An action is only chosen when it can run, so the schedule is
    complete and free of deadlock. Each backward is in one piece (B) or two (I, W), and the backwards of a chunk are in
    the order of the micro-batches."""
    chunks = [_Chunk(placement, virtual, microbatches) for virtual in range(placement.stages)]
    orders: list[list[Action]] = [[] for _ in range(placement.ranks)]
    done: set[tuple[int, str, int]] = set()  # virtual stage, F or B, micro-batch
    while ready := [(chunk, action) for chunk in chunks for action in chunk.ready(done)]:
        rank = stream.choice(sorted({chunk.rank for chunk, _ in ready}))
        chunk, action = stream.choice([pair for pair in ready if pair[0].rank == rank])
        orders[rank].append(action)
        chunk.ran(action, done)
    return orders


class _Chunk:
    """What one virtual stage still has to do."""

    def __init__(self, placement: Placement, virtual: int, microbatches: int):
        self.virtual, self.last = virtual, virtual == placement.stages - 1
        self.rank, self.number = placement.place(virtual)
        self.forwards = list(range(microbatches))  # micro-batches that are still to do
        self.backwards = list(range(microbatches))
        self.weights: list[int] = []  # micro-batches whose I is done and whose W is still to do

    def ready(self, done: set[tuple[int, str, int]]) -> Iterator[Action]:
        """The actions that can run now."""
        for m in self.forwards:
            if self.virtual == 0 or (self.virtual - 1, "F", m) in done:
                yield Action("F", m, self.number)
        m = next(iter(self.backwards), -1)
        if (self.virtual, "F", m) in done and (self.last or (self.virtual + 1, "B", m) in done):
            yield Action("I", m, self.number)
            if not self.weights:
                yield Action("B", m, self.number)
        if self.weights:
            yield Action("W", self.weights[0], self.number)

    def ran(self, action: Action, done: set[tuple[int, str, int]]) -> None:
        """Marks an action as done."""
        left = {"F": self.forwards, "W": self.weights}.get(action.op, self.backwards)
        left.remove(action.microbatch)
        if action.op == "I":
            self.weights.append(action.microbatch)
        if action.op != "W":
            done.add((self.virtual, "F" if action.op == "F" else "B", action.microbatch))


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="orders-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
