"""Saves checkpoints in the background while training continues: `AsyncSaver`.

    saver.start(step, held, state)   training waits for the copy to host memory, then continues
    saver.is_running                 this rank's part of it; training sums it over all ranks in each step
    saver.poll(running_anywhere)     after that sum: the saves that have ended, on all ranks at the same step
    saver.wait()                     waits for the save that is running, then returns the same

A save runs in a thread of its own. The thread's collectives cannot mix with those of training, because they run on a
process group that nothing else uses. At most one save runs at a time: `start` waits for the previous one.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from megascratch.checkpoint.backend.backend import AnyLease
from megascratch.checkpoint.consensus import on_all_ranks, on_first_rank
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.save import RawBytes, write_step
from megascratch.checkpoint.staging import Staging
from megascratch.checkpoint.write_plan import WritePlan, agree_on_write_plan
from megascratch.parallel.control import Control
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.runtime.faults import fault_point
from megascratch.storage.path import Place, storage_path


@dataclass
class Outcome:
    """How a save ended; the same on all ranks."""

    step: int
    nbytes: int  # of all data files
    stall_seconds: float  # how long training waited, on the rank that waited longest
    seconds: float = 0.0  # from its start to its end
    path: Place | None = None  # None: it failed
    error: Exception | None = None
    deleted: list[Place] = field(default_factory=list)  # older steps


class AsyncSaver:
    """Writes the steps of a run into one folder.

    Args:
        own: the control plane of all ranks, which nothing else uses.
        lease: the first rank's right to write; None on other ranks, and where no other process could write.
        asynchronous: if False, `start` returns when the save has ended.
        after: called on the first rank after each commit; deletes older steps and returns their paths.
    """

    def __init__(
        self,
        folder: str | Place,
        own: Control,
        *,
        lease: AnyLease | None = None,
        asynchronous: bool = True,
        after: Callable[[], list[Place]] = list,
    ):
        self.folder = storage_path(folder)
        self.own = own
        self.lease = lease
        self.asynchronous = asynchronous
        self.after = after
        self._held: list[ShardedTensor] | None = None
        self._plan: WritePlan | None = None
        self._staging: Staging | None = None
        self._under_way: tuple[threading.Thread, Outcome] | None = None
        self._ended: list[Outcome] = []

    def prepare(self, held: list[ShardedTensor], staging: bool = True) -> int:
        """Assigns chunks to ranks and, for asynchronous saves, allocates the host memory, so that the first save
        stalls training no longer than the others. Called by all ranks while no save is running. Returns the size of a
        checkpoint in bytes.

        Raises: on all ranks: UserError if a rank has not enough memory, CheckpointError if a rank's records are not
            valid.
        """
        if self._plan is None or self._held is not held:
            self._staging = None  # its memory first
            self._plan = agree_on_write_plan(held, self.own)
            self._held = held
        if staging and self.asynchronous and self._staging is None:
            allocated: list[Staging] = []
            layout = self._plan.layout
            on_all_ranks(self.own, lambda: allocated.append(Staging(layout)))
            self._staging = allocated[0]
        return self._plan.total_bytes

    def start(
        self, step: int, held: list[ShardedTensor], state: dict[str, Any], *, last: bool = False
    ) -> None:
        """Begins a save; called by all ranks. Its outcome comes from `poll` or `wait`.

        Args:
            held: pass the same list each time while only the content of the tensors changes: the assignment of chunks
                to ranks is then reused.
            state: any JSON; the caller must not change it afterwards.
            last: training has ended: write directly from the tensors and return when the save is done.
        """
        begun = time.perf_counter()
        self._join()
        in_background = self.asynchronous and not last
        self.prepare(held, staging=in_background)
        failure = self._copy(in_background)
        assert self._plan is not None
        outcome = Outcome(step, self._plan.total_bytes, time.perf_counter() - begun)
        work = (self._plan, self._raw(in_background), state, outcome, begun, failure)
        thread = threading.Thread(target=self._run, args=work, name="save", daemon=True)
        thread.start()
        self._under_way = thread, outcome
        if not in_background:
            self._join()
            outcome.stall_seconds = outcome.seconds

    @property
    def is_running(self) -> bool:
        """Whether a save is running on this rank."""
        return self._under_way is not None and self._under_way[0].is_alive()

    def poll(self, running_anywhere: bool) -> list[Outcome]:
        """Returns the saves that have ended since the last call. Called by all ranks at the same point; all get the
        same answer. Needs no collective.

        Args:
            running_anywhere: whether `is_running` was true on any rank, since the last save was started. Every save
                that runs has to be seen, so True is always right until it ends.
        """
        if not running_anywhere:
            self._join()
        return self._take_ended()

    def wait(self) -> list[Outcome]:
        """Waits for a running save, then returns the same as `poll`. Needs no collective: the threads of all ranks end
        together."""
        self._join()
        return self._take_ended()

    def _take_ended(self) -> list[Outcome]:
        ended = self._ended
        self._ended = []
        return ended

    def _join(self) -> None:
        if self._under_way is not None:
            thread, outcome = self._under_way
            thread.join()
            self._under_way = None
            self._ended.append(outcome)

    def close(self, wait: bool = True) -> None:
        """Releases the folder for other writers. Without `wait`, a running save is abandoned."""
        if wait:
            self._join()
        if self.lease is not None:
            self.lease.release()

    def _copy(self, in_background: bool) -> Exception | None:
        """Copies to host memory. An error is returned; the first collective of the thread reports it to all ranks."""
        try:
            fault_point("save.begin")
            if in_background and self._staging is not None:
                self._staging.copy()
        except Exception as error:
            return error
        return None

    def _raw(self, in_background: bool) -> RawBytes:
        assert self._plan is not None
        if in_background and self._staging is not None:
            return self._staging.raw
        slots = self._plan.layout.slots
        return lambda index: raw_bytes(slots[index].tensor)

    def _run(
        self,
        plan: WritePlan,
        raw: RawBytes,
        state: dict[str, Any],
        outcome: Outcome,
        begun: float,
        failure: Exception | None,
    ) -> None:
        """The body of the thread: writes one step and records its outcome."""
        inside = self.folder if self.lease is None else self.lease.inside
        try:
            fault_point("save.thread")
            stall = on_all_ranks(self.own, lambda: _checked(outcome.stall_seconds, failure))
            outcome.stall_seconds = self.own.reduce(stall, max)
            outcome.path = write_step(self.folder, inside, outcome.step, plan, raw, state, self.own)
            outcome.deleted = on_first_rank(self.own, self.after)
        except Exception as error:
            outcome.error = error
        outcome.seconds = time.perf_counter() - begun


def _checked(stall: float, failure: Exception | None) -> float:
    if failure is not None:
        raise failure
    return stall
