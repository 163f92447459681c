"""Saves and resumes a run: claims the checkpoint folder, starts asynchronous saves, reports how they end, and deletes
the checkpoints that the retention policy no longer keeps.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from megascratch.config.resolve import ResolvedTraining
from megascratch.parallel.mesh import Mesh, second_control
from megascratch.parallel.pending import CommunicationError
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.runtime.run_log import RUN_LOG
from megascratch.storage.path import Place, storage_path
from megascratch.storage.store import StoreError
from megascratch.training.report import Report

WEIGHTS = ("param.", "buffer.")
"""How the names of the tensors begin that make up the model."""


def open_saver(training: ResolvedTraining, mesh: Mesh) -> AsyncSaver:
    """The run's checkpoint writer. Called by all ranks; the first rank holds the folder's lease until
    `AsyncSaver.close`.

    Raises: UserError on all ranks if another run writes into the folder.
    """
    folder = storage_path(training.save)
    own = second_control(mesh)
    leases: list[AnyLease] = []
    on_first_rank(own, lambda: leases.append(acquire(folder)))
    return AsyncSaver(
        folder,
        own,
        lease=leases[0] if leases else None,
        asynchronous=training.async_save,
        after=_pruning(training, folder),
    )


def claim_reports(saver: AsyncSaver, training: ResolvedTraining) -> Lease | None:
    """Takes the lease on output_dir, so that two runs with different checkpoint folders do not overwrite each other's
    metrics.jsonl. Called by all ranks.

    Returns: on the first rank the lease, to be released at the end of the run. None on other ranks, if output_dir is
    the checkpoint folder (which has a lease already), or if no lease can be written: a report must never stop training.

    Raises: UserError on all ranks if another run writes into output_dir.
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


def make_ready(saver: AsyncSaver, training: ResolvedTraining, held: list[ShardedTensor]) -> None:
    """Prepares for saving before the first step: divides the writing among the ranks, allocates the host memory that
    saves need, and checks that the disk has room for one checkpoint.

    Raises: UserError on all ranks.
    """
    nbytes = saver.prepare(held, staging=training.save_interval > 0)
    on_first_rank(saver.own, lambda: require_room(saver.folder, nbytes))


class ToLoad(NamedTuple):
    """What a run takes from a checkpoint."""

    path: str
    """A step, or a folder of steps: then the newest valid one."""
    weights_only: bool = False
    """Nothing of the optimizer. The weights may have another floating-point type."""
    begins: bool = False
    """The run starts at step 0, whatever the step of the checkpoint."""
    saves: bool = True
    """The run will write checkpoints."""


def resume(saver: AsyncSaver, what: ToLoad, held: list[ShardedTensor]) -> dict[str, Any]:
    """Loads the newest valid checkpoint into the tensors of `held`. Newer damaged checkpoints in the run's own folder
    are renamed, because the run will write steps of the same numbers.

    Returns: the state that the checkpoint stores alongside its tensors.

    Raises: UserError on all ranks if there is no valid checkpoint, or if a newer valid one would be overwritten.
    """
    if what.weights_only:
        wanted = [item for item in held if item.name.startswith(WEIGHTS)]
        found = load_newest(what.path, wanted, saver.own, prefix=WEIGHTS, cast=True)
    else:
        found = load_newest(what.path, held, saver.own)
    first_step = 0 if what.begins else step_number(found.step)

    def prepare_folder() -> None:
        for step, problem in found.passed_over.items():
            _warn(f"skipped {step.name}: {problem}; resuming from {found.step.name}")
        if what.saves:
            _clear_the_way(saver.folder, found.step, first_step, found.passed_over)

    on_first_rank(saver.own, prepare_folder)
    return found.result


def _clear_the_way(folder: Place, start: Place, first_step: int, skipped: dict[Place, str]) -> None:
    """Renames the damaged checkpoints of `folder` that are newer than the first step.

    Args:
        start: the checkpoint that was loaded.
        skipped: the damaged checkpoints that loading has skipped -> what is wrong with each.
    """
    known = {path.resolve(): problem for path, problem in skipped.items()}
    for step in list_steps(folder):
        if step_number(step) <= first_step:
            continue
        problem = known.get(step.resolve()) or problem_of(step)
        if not problem:
            raise UserError(
                f"{step} is newer than {start}, from which this run resumes: a checkpoint is never "
                "overwritten; move it, or save elsewhere"
            )
        _warn(f"{step} is damaged and was renamed to {quarantine(step).name}")


def _warn(text: str) -> None:
    RUN_LOG.warning("warning: %s", text)
    print(f"megascratch pretrain: warning: {printable(text)}", file=sys.stderr, flush=True)


def _pruning(training: ResolvedTraining, folder: Place) -> Callable[[], list[Place]]:
    last = training.keep_last_n_checkpoints
    best = training.keep_best_n_checkpoints
    every = training.save_retain_interval
    if last is None and best is None and every is None:
        return list  # everything is kept
    return partial(_pruned, folder, RetentionPolicy(last or 1, every or 0, best or 0))


def _pruned(folder: Place, keep: RetentionPolicy) -> list[Place]:
    """Deletes older checkpoints. An error is only a warning: the new checkpoint is valid anyway."""
    try:
        return prune(folder, keep)
    except StoreError as error:
        _warn(f"older checkpoints could not be deleted and are kept for now: {error}")
        return []


class Checkpointing:
    """Saves checkpoints during training, and reports at the end of each step which saves have finished or failed.

    Args:
        report: the run's report, on the first rank only.
        saved_step: the step of the checkpoint that the run resumes from; -1: none.
    """

    def __init__(
        self, saver: AsyncSaver, training: ResolvedTraining, report: Report | None, saved_step: int
    ):
        self.saver = saver
        self.exits = training.exit_on_save_error
        self.report = report
        self.saved_step = saved_step
        self.failures = 0
        self.committed = saved_step  # the newest step whose checkpoint is complete
        self.measured: tuple[int, float] | None = (
            None  # step and validation loss that are not stored yet
        )

    def save(self, step: int, held: list[ShardedTensor], state: dict[str, Any]) -> None:
        """Starts a checkpoint of this step, unless there is one. Raises: as `at_step_end`."""
        if step != self.saved_step:
            if self.measured is not None and self.measured[0] == self.saved_step:
                self.settle()  # its loss must be stored before the next commit looks for the best checkpoints
            self.saver.start(step, held, state)
            self.saved_step = step
            self.at_step_end(saving=True)

    def at_step_end(self, saving: bool) -> None:
        """Reports the saves that have ended since the last call. Called by all ranks.

        Args:
            saving: a save is running on any rank, as all ranks have agreed in this step.

        Raises: on all ranks at the same step: LeaseLostError, CommunicationError, and with exit_on_save_error any other
        error of a save.
        """
        self._report_ended(self.saver.poll(saving), self.exits)

    def settle(self) -> None:
        """Waits until no save is in progress. Raises: as `at_step_end`."""
        self._report_ended(self.saver.wait(), self.exits)

    def finish(self, step: int, held: list[ShardedTensor], state: dict[str, Any]) -> None:
        """Saves the last checkpoint of a run and waits for it. Raises: any error of this save, since none follows."""
        self._report_ended(self.saver.wait(), self.exits)
        if step != self.saved_step:
            self.saver.start(step, held, state, last=True)
            self.saved_step = step
            self._report_ended(self.saver.wait(), exits=True)

    def validated(self, step: int, loss: float) -> None:
        """Stores the validation loss of a step with its checkpoint, if there is one, as soon as that is complete."""
        self.measured = (step, loss)
        self._keep_loss()

    def prune(self) -> None:
        """Applies the retention policy after the last validation, which may change the best checkpoints. No save may be
        in progress."""
        deleted = self.saver.after() if self.report is not None else []
        if deleted and self.report is not None:
            self.report.say(f"deleted {', '.join(path.name for path in deleted)}")

    def _keep_loss(self) -> None:
        """Stores the measured loss, on the first rank. An error is only a warning: the checkpoint is valid anyway."""
        if self.measured is None or self.measured[0] != self.committed:
            return
        step, loss = self.measured
        self.measured = None
        if self.report is None:
            return
        path = step_folder(self.saver.folder, step)
        try:
            if step_at(
                path
            ).is_there():  # otherwise the run has resumed from a checkpoint in another folder
                validation_loss.write_loss(path, loss)
        except (OSError, StoreError) as error:
            _warn(f"the validation loss of {path} could not be stored: {error}")

    def _report_ended(self, outcomes: Iterable[Outcome], exits: bool) -> None:
        """Reports saves that have ended. With `exits`, the error of a save is raised instead of a warning."""
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
            text = (
                f"no checkpoint of step {outcome.step} (failure {self.failures}): {outcome.error}; "
                "training continues"
            )
            self._report(row | {"error": str(outcome.error)}, text)
            if self.report is not None:
                _warn(text)

    def _report(self, row: dict[str, Any], text: str) -> None:
        if self.report is not None:
            self.report.event(row, text)


def _success(outcome: Outcome) -> str:
    deleted = (
        f" | deleted {', '.join(path.name for path in outcome.deleted)}" if outcome.deleted else ""
    )
    return (
        f"checkpoint {outcome.path} | {outcome.nbytes / 2**20:,.1f} MiB in {outcome.seconds:.2f} s | training paused "
        f"for {outcome.stall_seconds * 1e3:,.1f} ms{deleted}"
    )
