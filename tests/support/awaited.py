"""Runs in which every operation happens as late as it may."""

from contextlib import ExitStack, suppress
from functools import partial
from threading import Event
from typing import Any
from unittest.mock import patch

import torch

from megascratch.checkpoint import CheckpointError, async_saver, list_steps
from megascratch.checkpoint.async_saver import AsyncSaver
from megascratch.checkpoint.backend import direct_writer
from megascratch.checkpoint.backend.direct_writer import BUFFER_BYTES, DirectWriter
from megascratch.config.fields import with_fields
from megascratch.data_parallel.base import DataParallel
from megascratch.parallel.collectives import start_all_gather
from megascratch.parallel.gloo import EXCHANGED_GATHER
from megascratch.parallel.pending import Pending
from megascratch.pipeline import runtime
from megascratch.training import loop, step_log
from megascratch.training.health.replicas import ReplicasDiffer, check_replicas
from megascratch.training.loop import _Loop
from megascratch.training.state import TrainState
from megascratch.training.stop import StopRequest
from tests.support.breaks.state import Rows
from tests.support.layout_runs import built_run, config_of
from tests.support.rank_pool import mesh_of, on_ranks
from tests.support.trainers import build_trainer, train_steps

PP2 = {"pipeline_model_parallel_size": 2}
DP2 = {"data_parallel_size": 2}
ZERO1 = {**DP2, "use_distributed_optimizer": True}


class LateWork:
    """A collective that waits until it is awaited."""

    def __init__(self, launch, transport):
        self.launch, self.transport = launch, transport
        self.awaited = False

    def is_completed(self) -> bool:
        return self.awaited

    def wait(self) -> None:
        if not self.awaited:
            self.awaited = True
            self.launch(self.transport).wait()


class Late:
    """While it is in force every collective is late; `started` has all of them."""

    def __init__(self) -> None:
        self.started: list[LateWork] = []

    def start(self, operation, axis, result, launch) -> Pending:
        self.started.append(LateWork(launch, axis.transport))
        return Pending(operation, axis, self.started[-1], result)

    @property
    def forgotten(self) -> int:
        return sum(not work.awaited for work in self.started)

    def __enter__(self) -> "Late":
        self.patch = patch.object(Pending, "start", self.start)
        self.patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.stop()


READERS = {
    "the next step, without a forward between": lambda trainer: trainer.data_parallel.step(1e-2),
    "the state for a checkpoint": lambda trainer: trainer.held(),
    "the boxes of the state": lambda trainer: trainer.data_parallel.state(),
    "the comparison of replicas": lambda trainer: check_replicas(trainer, 1),
}


def read_late(name: str) -> tuple[str, int]:
    """On a rank: what is said, and how many gathers of the last step nobody has awaited."""
    trainer = build_trainer(config_of(num_layers=2, **ZERO1))
    trainer.held()  # made once, and the same list later
    with Late() as late:
        train_steps(trainer, TrainState(), 1)
        gathers = list(late.started)
        said = ""
        try:
            READERS[name](trainer)
        except ReplicasDiffer as error:
            said = str(error)
        return said, sum(not work.awaited for work in gathers)


def whoever_reads_weights_awaits_them(name: str, run=on_ranks) -> None:
    """The law."""
    for said, forgotten in run(2, read_late, name):
        assert said == ""
        assert forgotten == 0, f"{name}: {forgotten} gathers were not awaited"


class LateMessage:
    """A message that is in its place only after `wait`."""

    def __init__(self, receive, target: torch.Tensor, *args: Any, **kwargs: Any):
        self.target, self.arrived = target, torch.empty_like(target)
        self.work = receive(self.arrived, *args, **kwargs)

    def wait(self) -> None:
        self.work.wait()
        self.target.copy_(self.arrived)


def long_gather() -> tuple[int, bool]:
    """On a rank: a gather of more than is exchanged; its messages, and whether they are all in their places."""
    axis, numel = mesh_of(dp=2).data, EXCHANGED_GATHER
    messages: list[LateMessage] = []

    receive = axis.transport.receive

    def late(target: torch.Tensor, source: int) -> LateMessage:
        messages.append(LateMessage(receive, target, source))
        return messages[-1]

    with patch.object(axis.transport, "receive", late):
        own = torch.full((numel,), axis.rank + 1, dtype=torch.uint8)
        out = torch.zeros(
            2 * numel, dtype=torch.uint8
        )  # memory of an earlier gather would have its result
        whole = start_all_gather(own, axis, out).wait()
    return len(messages), whole.tolist() == [1] * numel + [2] * numel


def a_long_gather_awaits_its_messages(run=on_ranks) -> None:
    """The law."""
    assert run(2, long_gather) == [(1, True)] * 2


SCHEDULES = {
    "1f1b": PP2,
    "interleaved": {**PP2, "num_virtual_stages_per_pipeline_rank": 2, "num_layers": 4},
    "zb_v": {**PP2, "pipeline_schedule": "zb_v", "num_layers": 4},
}


class Counted:
    """A transfer that knows whether it was awaited. With `tells` a send says that it is over, as gloo's never do."""

    def __init__(self, work, tells: bool):
        self.work, self.tells, self.awaited = work, tells, False

    def is_completed(self) -> bool:
        return self.tells or self.work.is_completed()

    def wait(self) -> None:
        self.awaited = True
        self.work.wait()


def transfers(config, tells: bool) -> tuple[int, int, int]:
    """On a rank: how many transfers two steps and a validation posted, and how many of them, and of the first messages
    over each link, nobody has awaited."""
    posted: list[Counted] = []
    plain = runtime._start

    def start(link, tensor, outwards):
        posted.append(Counted(plain(link, tensor, outwards), tells and outwards))
        return posted[-1]

    with patch.object(runtime, "_start", start):
        trainer = build_trainer(config)
        first = [transfer.awaited for transfer in posted]
        train_steps(trainer, TrainState(), 2)
    return (
        len(posted) - len(first),
        sum(not work.awaited for work in posted[len(first) :]),
        first.count(False),
    )


def every_transfer_is_awaited(schedule: str, tells: bool, run=on_ranks) -> None:
    """The law."""
    config = config_of(**{"num_layers": 2, "global_batch_size": 4} | SCHEDULES[schedule])
    for posted, forgotten, first in run(2, transfers, config, tells):
        assert posted >= 2 * 2 * 4
        assert (forgotten, first) == (0, 0), (
            f"{forgotten} of {posted} transfers, {first} first messages not awaited"
        )


class LateThread:
    """An executor that does a task when its result is asked for, and not before."""

    def __init__(self, *args: object, **kwargs: object):
        self.shutdown = lambda: None

    def submit(self, task, *args):
        return LateResult(partial(task, *args))


class LateResult:
    def __init__(self, task):
        self.task = task
        self.done = False

    def result(self) -> None:
        if not self.done:
            self.done = True
            self.task()


def a_stream_awaits_each_room(folder) -> None:
    """The law: five rooms, the last one not full, are in the file as they were put in."""
    content = bytes(range(251)) * (4 * BUFFER_BYTES // 251 + 40)
    with ExitStack() as stack:
        stack.enter_context(patch.object(direct_writer, "ThreadPoolExecutor", LateThread))
        file = stack.enter_context(DirectWriter(folder / "file"))
        file.put(memoryview(content))
        file.finish()
    assert (folder / "file").read_bytes() == content


SAVED = {
    "num_layers": 2,
    "global_batch_size": 4,
    "eval_iters": 1,
    "device": "cpu",
    "save_interval": 2,
    "train_iters": 4,
}


class Writing:
    """Saves that get no further than their threads until somebody waits for them.

    Args:
        fails: the save of this step fails, the first time.
    """

    def __init__(self, fails: int = 0):
        self.fails, self.go_on = fails, Event()
        self.join, self.write = AsyncSaver._join, async_saver.write_step

    def patches(self) -> list:
        def joined(it: AsyncSaver) -> None:
            if it._under_way is not None:
                self.go_on.set()
            self.join(it)
            self.go_on.clear()

        def written(folder, inside, step, *args):
            self.go_on.wait()
            if step == self.fails:
                self.fails = 0
                raise CheckpointError("the disk was full for a moment")
            return self.write(folder, inside, step, *args)

        return [
            patch.object(AsyncSaver, "_join", joined),
            patch.object(async_saver, "write_step", written),
        ]


def saves_of_a_run(folder, writing: Writing, sick: int = 0) -> list[str]:
    """The checkpoints that stand when a run has ended, whose step `sick` has no numbers."""
    norm, taken = DataParallel.norm_parts, []

    def sick_norm(data_parallel: DataParallel) -> torch.Tensor:
        taken.append(norm(data_parallel))
        return taken[-1] * torch.nan if len(taken) == sick else taken[-1]

    (folder / "out").mkdir()
    told = {"output_dir": str(folder / "out"), "save": str(folder / "saved")}
    with ExitStack() as stack:
        stack.callback(writing.go_on.set)
        changes = [
            patch.object(DataParallel, "norm_parts", sick_norm),
            patch.object(loop, "Report", Rows),
            patch.object(step_log, "matmul_peak", lambda *args: 1.0),
            *writing.patches(),
        ]
        for change in changes:
            stack.enter_context(change)
        run = built_run(with_fields(config_of(**SAVED), told))
        with StopRequest(run.config.training) as stop, suppress(FloatingPointError):
            _Loop(run).run(stop)
        return [step.name for step in list_steps(folder / "saved")]


def a_save_under_way_is_finished_when_a_run_fails(folder) -> None:
    """The law: the run ends after its bad third step, with the checkpoint of the second."""
    assert saves_of_a_run(folder, Writing(), sick=3) == ["step_00000002"]


def the_last_save_is_made_again_where_it_failed(folder) -> None:
    """The law: what the run waits for in the end is not there, so it is written once more."""
    assert saves_of_a_run(folder, Writing(fails=4)) == ["step_00000004", "step_00000002"]
