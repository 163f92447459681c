"""The state of a run in, checkpoints beside training out: what is kept, what is said, and what an error means."""

import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from megascratch.checkpoint import (
    AsyncSaver,
    LeaseLostError,
    Outcome,
    RetentionPolicy,
    acquire,
    list_steps,
    load_newest,
    prune,
    quarantine,
    validation_loss,
)
from megascratch.checkpoint.backend.backend import AnyLease, require_room, step_at
from megascratch.checkpoint.backend.local_lease import Lease
from megascratch.checkpoint.consensus import on_first_rank
from megascratch.checkpoint.steps import problem_of, step_folder, step_number
from megascratch.config.errors import UserError
from megascratch.config.printable import printable
from megascratch.config.settings import TrainingConfig
from megascratch.parallel.collectives import CommunicationError
from megascratch.parallel.mesh import Mesh, host_axis
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.storage.path import Place, storage_path
from megascratch.storage.store import StoreError
from megascratch.training.report import Report


def open_saver(training: TrainingConfig, mesh: Mesh, timeout: timedelta | None = None) -> AsyncSaver:
    """The run's writer; called by all ranks, of which the first claims the folder until `AsyncSaver.close`.

    Raises: UserError on all ranks where another run writes into it.
    """
    assert training.save is not None
    folder = storage_path(training.save)
    own = host_axis(mesh.world, timeout)
    leases: list[AnyLease] = []
    on_first_rank(own, lambda: leases.append(acquire(folder)))
    return AsyncSaver(
        folder,
        mesh.world,
        own,
        mesh.device,
        lease=leases[0] if leases else None,
        asynchronous=training.async_save,
        after=_pruning(training, folder),
    )


def claim_reports(saver: AsyncSaver, training: TrainingConfig) -> Lease | None:
    """The right of the first rank to write the report of the run into output_dir, to be released at the end; called by
    all ranks. Two runs that save into two folders would else lose each other's metrics.jsonl.

    Returns: None on other ranks, where the folder is that of the checkpoints, which is claimed already, and where a
    disk takes no claim: a report must never stop training.

    Raises: UserError on all ranks where another run writes there.
    """
    leases: list[Lease] = []
    folder = Path(training.output_dir)
    if folder.resolve() != saver.folder.resolve():
        on_first_rank(saver.own, lambda: leases.extend(_claimed(folder)))
    return leases[0] if leases else None


def _claimed(folder: Path) -> list[Lease]:
    try:
        return [Lease.acquire(folder, "choose another folder (--output-dir)")]
    except OSError:
        return []


def make_ready(saver: AsyncSaver, training: TrainingConfig, held: list[ShardedTensor]) -> None:
    """Before the first step: shares out the writing, takes the host memory that saves need, and refuses a disk that
    could not take one checkpoint. Raises: UserError on all ranks."""
    nbytes = saver.prepare(held, staging=training.save_interval > 0)
    on_first_rank(saver.own, lambda: require_room(saver.folder, nbytes))


def resume(saver: AsyncSaver, training: TrainingConfig, held: list[ShardedTensor]) -> dict[str, Any]:
    """Fills what is held from the newest sound checkpoint; its state. Damaged ones that lie in the way of this run's
    own are given other names.

    Raises: on all ranks: UserError where there is none, or the run would have to overwrite one that is not damaged.
    """
    assert training.load is not None
    path = training.load
    found = load_newest(path, held, saver.own)
    on_first_rank(saver.own, lambda: _clear_the_way(saver.folder, found.step, found.passed_over))
    return found.result


def _clear_the_way(folder: Place, start: Place, passed_over: dict[Place, str]) -> None:
    known = {path.resolve(): problem for path, problem in passed_over.items()}
    for step, problem in passed_over.items():
        _warn(f"passed over {step.name}: {problem}; going on from {start.name}")
    for step in (step for step in list_steps(folder) if step_number(step) > step_number(start)):
        problem = known.get(step.resolve()) or problem_of(step)
        if not problem:
            raise UserError(
                f"{step} is newer than {start}, from which this run goes on: a checkpoint is never "
                "overwritten; move it, or save elsewhere"
            )
        _warn(f"{step} is damaged and now called {quarantine(step).name}")


def _warn(text: str) -> None:
    print(f"megascratch pretrain: warning: {printable(text)}", file=sys.stderr, flush=True)


def _pruning(training: TrainingConfig, folder: Place) -> Callable[[], list[Place]]:
    last, best = training.keep_last_n_checkpoints, training.keep_best_n_checkpoints
    every = training.save_retain_interval
    if last is every is best is None:
        return list  # everything is kept
    return partial(_pruned, folder, RetentionPolicy(last or 1, every or 0, best or 0))


def _pruned(folder: Place, keep: RetentionPolicy) -> list[Place]:
    """The checkpoint just written stands, whatever becomes of its elders."""
    try:
        return prune(folder, keep)
    except StoreError as error:
        _warn(f"older checkpoints stay for now: {error}")
        return []


class Checkpointing:
    """Saves when told, and says at each step's end what has become of it.

    Args:
        report: on the first rank.
        saved_step: of the checkpoint that the run goes on from; -1: none.
    """

    def __init__(self, saver: AsyncSaver, training: TrainingConfig, report: Report | None, saved_step: int):
        self.saver, self.exits, self.report, self.saved_step = saver, training.exit_on_save_error, report, saved_step
        self.failures = 0
        self.committed = saved_step  # the newest step whose checkpoint is whole
        self.measured: tuple[int, float] | None = None  # step and validation loss that are still to be kept

    def save(self, step: int, held: list[ShardedTensor], state: dict[str, Any]) -> None:
        """Begins a checkpoint of this step, unless there is one. Raises: as `at_step_end`."""
        if step != self.saved_step:
            if self.measured is not None and self.measured[0] == self.saved_step:
                self.settle()  # its loss is kept before the next commit looks for the best
            self.saver.start(step, held, state)
            self.saved_step = step
            self.at_step_end()

    def at_step_end(self) -> None:
        """Tells how saves have ended; called by all ranks.

        Raises: on all ranks at the same step: LeaseLostError, CommunicationError, and with exit_on_save_error whatever
        else a save ended with.
        """
        self._tell(self.saver.poll(), self.exits)

    def settle(self) -> None:
        """Until no save is under way. Raises: as `at_step_end`."""
        self._tell(self.saver.wait(), self.exits)

    def finish(self, step: int, held: list[ShardedTensor], state: dict[str, Any]) -> None:
        """The last checkpoint of a run. Raises: whatever it ends with, since no other follows."""
        self._tell(self.saver.wait(), self.exits)
        if step != self.saved_step:
            self.saver.start(step, held, state, last=True)
            self.saved_step = step
            self._tell(self.saver.wait(), exits=True)

    def validated(self, step: int, loss: float) -> None:
        """Keeps the validation loss of a step beside its checkpoint, if there is one, as soon as it is whole."""
        self.measured = (step, loss)
        self._keep_loss()

    def prune(self) -> None:
        """Behind the last validation: what it has shown not to be one of the best may go. No save is under way."""
        deleted = self.saver.after() if self.report is not None else []
        if deleted and self.report is not None:
            self.report.say(f"deleted {', '.join(path.name for path in deleted)}")

    def _keep_loss(self) -> None:
        """On the first rank. A checkpoint is worth having without it."""
        if self.measured is None or self.measured[0] != self.committed:
            return
        step, loss = self.measured
        self.measured = None
        if self.report is None:
            return
        path = step_folder(self.saver.folder, step)
        try:
            if step_at(path).is_there():  # else the run goes on from a checkpoint that lies elsewhere
                validation_loss.write_loss(path, loss)
        except (OSError, StoreError) as error:
            _warn(f"the validation loss of {path} is not kept: {error}")

    def _tell(self, outcomes: Iterable[Outcome], exits: bool) -> None:
        for outcome in outcomes:
            row = {
                "step": outcome.step,
                "event": "save",
                "bytes": outcome.nbytes,
                "stall_seconds": outcome.stall_seconds,
                "save_seconds": outcome.seconds,
            }
            if outcome.error is None:
                self.committed = outcome.step
                self._keep_loss()
                self._report(row, _success(outcome))
                continue
            self.failures += 1
            if self.saved_step == outcome.step:
                self.saved_step = -1
            if exits or isinstance(outcome.error, LeaseLostError | CommunicationError):
                raise outcome.error
            text = f"no checkpoint of step {outcome.step} (failure {self.failures}): {outcome.error}; training goes on"
            self._report(row | {"error": str(outcome.error)}, text)
            if self.report is not None:
                _warn(text)

    def _report(self, row: dict[str, Any], text: str) -> None:
        if self.report is not None:
            self.report.event(row, text)


def _success(outcome: Outcome) -> str:
    deleted = f" | deleted {', '.join(path.name for path in outcome.deleted)}" if outcome.deleted else ""
    return (
        f"checkpoint {outcome.path} | {outcome.nbytes / 2**20:,.1f} MiB in {outcome.seconds:.2f} s | training stood "
        f"still for {outcome.stall_seconds * 1e3:,.1f} ms{deleted}"
    )
