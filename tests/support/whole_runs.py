"""On a rank: runs of the real training loop, what they did wrong being put in from outside, and what a run did that
never met any of it.

`happened` trains a case by the loop, `worked_out` by its plan: a list of steps that somebody has worked out by hand,
each of which is one call of `Trainer.train_step`. Both tell the same things of a run, so they can be compared.
"""

import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from threading import Event
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from megascratch.checkpoint import async_saver
from megascratch.checkpoint.async_saver import AsyncSaver
from megascratch.config.fields import with_fields
from megascratch.config.settings import Config
from megascratch.data.samples.dataset import Dataset
from megascratch.data_parallel.base import DataParallel
from megascratch.optim.loss_scale import LossScale
from megascratch.optim.lr_schedule import learning_rate
from megascratch.training import loop, step_log
from megascratch.training.health import bad_steps
from megascratch.training.health.bad_steps import LossGuard
from megascratch.training.loop import _Loop
from megascratch.training.setup import TrainingRun
from megascratch.training.stop import StopRequest
from tests.support.breaks.state import Rows, _shared_folder
from tests.support.layout_runs import built_run

SPIKE = 100.0  # times the loss


class Step(NamedTuple):
    """One step of a plan: its number, and the samples that it reads, numbered without those that nobody reads."""

    number: int
    first: int
    size: int
    scale: LossScale | None = (
        None  # before this step, where the step before it has changed it in another way
    )


class Case(NamedTuple):
    """A run and its plan.

    Args:
        settings: beside those of every case.
        steps: the plan.
        bad: what is put in: the how-manieth step that is taken -> 'nan' or 'spike'.
        unread: samples that a rollback leaves out.
        parts: steps after which the run ends and is started again from its checkpoint.
        held_up: the save of this step gets no further than its thread until somebody waits for it or has looked for a
            checkpoint.
    """

    settings: dict[str, Any]
    steps: list[Step]
    bad: Mapping[int, str] | None = None
    unread: range = range(0)
    parts: tuple[int, ...] = ()
    held_up: int = 0


class Told(NamedTuple):
    """Everything of a run that must not depend on what it met."""

    steps: dict[int, tuple[float, float, float]]  # number -> loss, gradient norm, learning rate
    samples: dict[int, list[int]]  # number -> what this rank read in that step
    numbers: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def differences(found: Told, expected: Told) -> list[str]:
    """The names of what is not the same: tensors, counts and samples to the last bit, what a log line tells to the
    rounding of a mean."""
    wrong = [
        f"step {n}: {found.steps.get(n)} and not {told}"
        for n, told in expected.steps.items()
        if n not in found.steps or not np.allclose(found.steps[n], told, rtol=1e-12, atol=0)
    ]
    wrong += [
        f"{name} is {found.numbers[name]} and not {value}"
        for name, value in expected.numbers.items()
        if found.numbers[name] != value
    ]
    wrong += [
        name
        for name, tensor in expected.tensors.items()
        if not torch.equal(found.tensors[name], tensor)
    ]
    if found.samples != expected.samples:
        wrong.append(f"samples {found.samples} and not {expected.samples}")
    return wrong


def run_and_plan(config: Config, case: Case) -> list[str]:
    """On a rank: in what a run differs from its plan."""
    return differences(happened(config, case), worked_out(config, case))


# ---- by the loop -----------------------------------------------------------------------------------------------


class KeptRows(Rows):
    """A report that keeps the rows of the steps that still count."""

    def go_back(self, step: int) -> None:
        self.rows = [row for row in self.rows if row["step"] <= step]


class Eager:
    """Instead of a prefetch: makes every item as early as it may be made, and no thread decides when."""

    def __init__(self, source: Iterator, ahead: int):
        self.source, self.ahead = source, ahead
        self.ready: deque = deque()

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        while len(self.ready) <= self.ahead:
            item = next(self.source, None)
            if item is None:
                break
            self.ready.append(item)
        if not self.ready:
            raise StopIteration
        return self.ready.popleft()

    def __enter__(self) -> "Eager":
        return self

    def __exit__(self, *error: object) -> None:
        self.ready.clear()


class Disturbance:
    """What goes wrong from outside. The gradients of a bad step are not numbers, or its loss is a spike."""

    def __init__(self, bad: Mapping[int, str], held_up: int):
        self.bad, self.held_up = bad, held_up
        self.taken = 0
        self.samples: dict[int, list[int]] = {}
        self.go_on = Event()

    def patches(self) -> list:
        norm, judge, wait, latest, write = (
            DataParallel.norm_parts,
            LossGuard.judge,
            AsyncSaver.wait,
            bad_steps.latest,
            async_saver.write_step,
        )

        def sick_norm(data_parallel: DataParallel) -> torch.Tensor:
            self.taken += 1
            if self.bad.get(self.taken) == "nan":
                for owned in data_parallel.owned:
                    owned.grads.fill_(torch.nan)
            return norm(data_parallel)

        def spiky_judge(watch: LossGuard, loss: float, grad_norm: float) -> str:
            return judge(
                watch, loss * SPIKE if self.bad.get(self.taken) == "spike" else loss, grad_norm
            )

        def waited_for(it: AsyncSaver) -> list:
            self.go_on.set()
            return wait(it)

        def looked_for(folder: Any) -> Any:
            found = latest(folder)
            self.go_on.set()
            return found

        def written(folder: Any, inside: Any, step: int, *args: Any) -> Any:
            if step == self.held_up:
                self.go_on.wait()
            return write(folder, inside, step, *args)

        return [
            patch.object(DataParallel, "norm_parts", sick_norm),
            patch.object(LossGuard, "judge", spiky_judge),
            patch.object(AsyncSaver, "wait", waited_for),
            patch.object(bad_steps, "latest", looked_for),
            patch.object(async_saver, "write_step", written),
        ]


def happened(config: Config, case: Case) -> Told:
    """What the loop does."""
    folder = _shared_folder()
    disturbance = Disturbance(case.bad or {}, case.held_up)
    reports: list[KeptRows] = []

    def report(*args: Any) -> KeptRows:
        reports.append(KeptRows(*args))
        return reports[-1]

    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(patch.object(loop, "Report", report))
        stack.enter_context(patch.object(loop, "Prefetch", Eager))
        stack.enter_context(patch.object(step_log, "matmul_peak", lambda *args: 1.0))
        for change in disturbance.patches():
            stack.enter_context(change)
        stack.callback(disturbance.go_on.set)
        ends, start = [*case.parts, case.steps[-1].number], None
        for end in ends:
            told = {
                "output_dir": folder,
                "save": folder,
                "load": start,
                "log_interval": 1,
                "train_iters": end,
            }
            run = built_run(with_fields(config, told))
            stack.callback(run.mesh.close)
            samples = noted(run)
            with StopRequest(run.config.training) as stop:
                _Loop(run).run(stop)
            disturbance.samples |= samples
            start = folder
    rows = {
        row["step"]: (row["loss"], row["grad_norm"], row["learning_rate"])
        for kept in reports
        for row in kept.rows
    }
    plan = [step.number for step in case.steps]
    return told_of(
        run, {number: row for number, row in rows.items() if number in plan}, disturbance.samples
    )


def noted(run: TrainingRun) -> dict[int, list[int]]:
    """The samples of each step that changes the weights from now on; a step that is taken again counts then."""
    samples: dict[int, list[int]] = {}
    train_step = run.trainer.train_step

    def train(batches: list, lr: float, step: int, *args: Any) -> Any:
        result = train_step(batches, lr, step, *args)
        if not result.skipped:
            samples[step] = [number for batch in batches for number in batch.samples.tolist()]
        return result

    run.trainer.train_step = train  # type: ignore[method-assign]
    return samples


def told_of(run: TrainingRun, steps: dict[int, tuple], samples: dict[int, list[int]]) -> Told:
    run.trainer.save_scalars(run.state)
    numbers = run.state.to_dict()
    tensors = {f"{held.name}{held.box}": held.tensor.clone() for held in run.trainer.held()}
    return Told(steps if run.mesh.is_first else {}, samples, numbers, tensors)


# ---- by the plan -----------------------------------------------------------------------------------------------


class Cut:
    """A data set without some of its samples."""

    def __init__(self, dataset: Dataset, unread: range):
        self.dataset, self.unread = dataset, unread

    def __getitem__(self, number: int):
        return self.dataset[number if number < self.unread.start else number + len(self.unread)]


def worked_out(config: Config, case: Case) -> Told:
    """What the plan says."""
    folder = _shared_folder()
    told = {"output_dir": folder, "save": folder, "train_iters": 1}
    run = built_run(with_fields(config, told))
    trainer, training = run.trainer, run.config.training
    assert run.splits.train is not None
    train = Cut(run.splits.train, case.unread)
    steps, samples, losses = {}, noted(run), []
    for number, first, size, scale in case.steps:
        if scale is not None:
            trainer.scale = scale
        lr = learning_rate(run.config.optim, number - 1, first)
        microbatches = size // training.micro_batch_size // run.mesh.dp.size
        batches = run.read(train, first, microbatches, training.micro_batch_size)
        result = trainer.train_step(batches, lr, number)
        losses.append(result.global_loss)
        steps[number] = trainer.global_loss(result.loss), result.grad_norm, lr
    last, guard = case.steps[-1], run.config.guard
    run.state.step, run.state.consumed_samples = last.number, last.first + last.size
    if guard.check_for_spiky_loss:
        run.state.recent_losses = losses[-guard.spiky_loss_window :]
    if run.config.optim.fp16:
        overflows = [number for number, kind in (case.bad or {}).items() if kind == "nan"]
        run.state.overflow_steps = len(overflows)
        run.state.overflow_samples = len(overflows) * run.config.training.global_batch_size
    if case.unread:
        run.state.skipped_samples = [[case.unread.start, case.unread.stop]]
    told = told_of(run, steps, samples)
    run.saver.close()
    run.mesh.close()
    if run.mesh.is_first:
        shutil.rmtree(folder)
    return told
