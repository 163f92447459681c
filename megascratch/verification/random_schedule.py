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
    orders = random_schedules(stream, placement, microbatches)
    folder = _folder()
    number = len(list(folder.iterdir()))
    file = folder / f"order-{number}.csv"
    file.write_text(write_table(orders, placement, compute_only=True))
    return str(file)


def random_schedules(
    stream: random.Random, placement: Placement, microbatches: int
) -> list[list[Action]]:
    """The orders of all ranks, compute actions only. An action is only chosen when it can run, so the schedule is
    complete and free of deadlock. Each backward is in one piece (B) or two (I, W), and the backwards of a chunk are in
    the order of the micro-batches."""
    chunks = [_Chunk(placement, virtual, microbatches) for virtual in range(placement.stages)]
    orders: list[list[Action]] = [[] for _ in range(placement.ranks)]
    done: set[tuple[int, str, int]] = set()  # virtual stage, F or B, micro-batch
    while True:
        ready: dict[int, list[tuple[_Chunk, Action]]] = {}  # rank -> what it can run now
        for chunk in chunks:
            for action in chunk.ready(done):
                ready.setdefault(chunk.rank, []).append((chunk, action))
        if not ready:
            return orders
        rank = stream.choice(sorted(ready))
        chunk, action = stream.choice(ready[rank])
        orders[rank].append(action)
        chunk.ran(action, done)


class _Chunk:
    """What one virtual stage still has to do."""

    def __init__(self, placement: Placement, virtual: int, microbatches: int):
        self.virtual = virtual
        self.last = virtual == placement.stages - 1
        self.rank, self.number = placement.place(virtual)
        self.forwards = list(range(microbatches))  # micro-batches that are still to do
        self.backwards = list(range(microbatches))
        self.weights: list[int] = []  # micro-batches whose I is done and whose W is still to do

    def ready(self, done: set[tuple[int, str, int]]) -> Iterator[Action]:
        """The actions that can run now."""
        for m in self.forwards:
            if self.virtual == 0 or (self.virtual - 1, "F", m) in done:
                yield Action("F", m, self.number)
        if self.backwards:
            m = self.backwards[0]
            has_input = (self.virtual, "F", m) in done
            has_gradient = self.last or (self.virtual + 1, "B", m) in done
            if has_input and has_gradient:
                yield Action("I", m, self.number)
                if not self.weights:
                    yield Action("B", m, self.number)
        if self.weights:
            yield Action("W", self.weights[0], self.number)

    def ran(self, action: Action, done: set[tuple[int, str, int]]) -> None:
        """Marks an action as done."""
        m = action.microbatch
        if action.op == "F":
            self.forwards.remove(m)
            done.add((self.virtual, "F", m))
        elif action.op == "W":
            self.weights.remove(m)
        else:
            self.backwards.remove(m)
            done.add((self.virtual, "B", m))
        if action.op == "I":
            self.weights.append(m)


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="orders-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
