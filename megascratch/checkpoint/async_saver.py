"""`AsyncSaver`: saves that run beside training, on a process group and a thread of their own.

    saver.start(step, held, state)   training stands still for the copy to host memory, then goes on
    saver.poll()                     at each step's end: the saves that have ended, on all ranks at the same step
    saver.wait()                     until none is under way, then the same

The thread's collectives never meet training's, because they run on a group that nothing else uses. Never are two
saves under way: `start` first waits for the one before.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from megascratch.checkpoint.backend.backend import AnyLease
from megascratch.checkpoint.consensus import on_all_ranks, on_first_rank
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.save import RawBytes, write_step
from megascratch.checkpoint.staging import Staging
from megascratch.checkpoint.write_plan import WritePlan, agree_on_write_plan
from megascratch.parallel.collectives import all_reduce
from megascratch.parallel.mesh import Axis
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.runtime.faults import fault_point
from megascratch.storage.path import Place, storage_path


@dataclass
class Outcome:
    """How a save ended; the same on all ranks."""

    step: int
    nbytes: int  # of all data files
    stall_seconds: float  # that training stood still, on the rank that waited longest
    seconds: float = 0.0  # from its start to its end
    path: Place | None = None  # None: it failed
    error: Exception | None = None
    deleted: list[Place] = field(default_factory=list)  # older steps


class AsyncSaver:
    """Writes the steps of a run into one folder.

    Args:
        world: of training; asked at steps' ends whether all ranks' threads have ended.
        own: the same ranks over a CPU group (gloo) that nothing else uses.
        device: of `world`'s collectives.
        lease: the first rank's right to write; None on other ranks, and where nobody else could write.
        asynchronous: False: `start` returns when the save has ended.
        after: called on the first rank behind each commit; deletes older steps and tells which.
    """

    def __init__(
        self,
        folder: str | Place,
        world: Axis,
        own: Axis,
        device: torch.device,
        *,
        lease: AnyLease | None = None,
        asynchronous: bool = True,
        after: Callable[[], list[Place]] = list,
    ):
        self.folder, self.world, self.own, self.device = storage_path(folder), world, own, device
        self.lease, self.asynchronous, self.after = lease, asynchronous, after
        self._held: list[ShardedTensor] | None = None
        self._share: WritePlan | None = None
        self._staging: Staging | None = None
        self._under_way: tuple[threading.Thread, Outcome] | None = None
        self._ended: list[Outcome] = []

    def prepare(self, held: list[ShardedTensor], staging: bool = True) -> int:
        """Shares out the work and, for asynchronous saves, takes the host memory, so that the first one stalls no
        longer than the others; called by all ranks while no save is under way. The bytes of a whole checkpoint.

        Raises: on all ranks: UserError where one has not enough memory, CheckpointError where records are not sound.
        """
        if self._share is None or self._held is not held:
            self._staging = None  # its memory first
            self._held, self._share = held, agree_on_write_plan(held, self.own)
        if staging and self.asynchronous and self._staging is None:
            made: list[Staging] = []
            layout = self._share.layout
            on_all_ranks(self.own, lambda: made.append(Staging(layout)))
            self._staging = made[0]
        return self._share.total_bytes

    def start(self, step: int, held: list[ShardedTensor], state: dict[str, Any], *, last: bool = False) -> None:
        """Begins a save; called by all ranks. Its outcome comes from `poll` or `wait`.

        Args:
            held: the same list each time, while nothing but the tensors' content changes: then no work is shared out.
            state: any JSON; not changed afterwards.
            last: nothing is left to train: write from the state itself and return when it is done.
        """
        begun = time.perf_counter()
        self._join()
        beside = self.asynchronous and not last
        self.prepare(held, staging=beside)
        failure = self._copy(beside)
        assert self._share is not None
        outcome = Outcome(step, self._share.total_bytes, time.perf_counter() - begun)
        work = (self._share, self._raw(beside), state, outcome, begun, failure)
        thread = threading.Thread(target=self._run, args=work, name="save", daemon=True)
        thread.start()
        self._under_way = thread, outcome
        if not beside:
            self._join()
            outcome.stall_seconds = outcome.seconds

    def poll(self) -> list[Outcome]:
        """The saves that have ended since the last question; called by all ranks at the same place, and all get the
        same. Costs a small collective of training's while a save is under way, else nothing."""
        if self._under_way is not None:
            alive = torch.tensor(float(self._under_way[0].is_alive()), device=self.device)
            if not all_reduce(alive, self.world, dist.ReduceOp.MAX).item():
                self._join()
        ended, self._ended = self._ended, []
        return ended

    def wait(self) -> list[Outcome]:
        """As `poll`, when no save is under way any more: all ranks' threads end together, so nothing is asked."""
        self._join()
        ended, self._ended = self._ended, []
        return ended

    def _join(self) -> None:
        if self._under_way is not None:
            thread, outcome = self._under_way
            thread.join()
            self._under_way = None
            self._ended.append(outcome)

    def close(self, wait: bool = True) -> None:
        """Lets others write into the folder; without `wait` a save under way is given up."""
        if wait:
            self._join()
        if self.lease is not None:
            self.lease.release()

    def _copy(self, beside: bool) -> Exception | None:
        """An error here is told to all ranks by the thread's first collective."""
        try:
            fault_point("save.begin")
            if beside and self._staging is not None:
                self._staging.copy()
        except Exception as error:
            return error
        return None

    def _raw(self, beside: bool) -> RawBytes:
        assert self._share is not None
        if beside and self._staging is not None:
            return self._staging.raw
        slots = self._share.layout.slots
        return lambda index: raw_bytes(slots[index].tensor)

    def _run(
        self,
        share: WritePlan,
        raw: RawBytes,
        state: dict[str, Any],
        outcome: Outcome,
        begun: float,
        failure: Exception | None,
    ) -> None:
        """The thread of a save."""
        inside = self.folder if self.lease is None else self.lease.inside
        try:
            fault_point("save.thread")
            outcome.stall_seconds = max(on_all_ranks(self.own, lambda: _checked(outcome.stall_seconds, failure)))
            outcome.path = write_step(self.folder, inside, outcome.step, share, raw, state, self.own)
            outcome.deleted = on_first_rank(self.own, self.after)
        except Exception as error:
            outcome.error = error
        outcome.seconds = time.perf_counter() - begun


def _checked(stall: float, failure: Exception | None) -> float:
    if failure is not None:
        raise failure
    return stall
