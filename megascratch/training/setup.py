"""Builds everything that a run needs from its settings: process groups, model, optimizer, data and checkpoint. The
settings and files, and that all ranks agree on them, are checked before any process group starts.
"""

import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch

from megascratch.checkpoint import AsyncSaver
from megascratch.checkpoint.backend.local_lease import Lease
from megascratch.checkpoint.consensus import on_first_rank
from megascratch.checkpoint.steps import is_step, step_folder
from megascratch.checkpoint.validation_loss import known_loss
from megascratch.config.errors import Problems
from megascratch.config.layout import Layout
from megascratch.config.notices import notices
from megascratch.config.resolve import ResolvedConfig, ResolvedParallel
from megascratch.config.settings import DataConfig, ParallelConfig
from megascratch.config.verbosity import detail, note
from megascratch.data.samples.batch import Batch
from megascratch.data.samples.build import Splits
from megascratch.data.samples.dataset import Dataset
from megascratch.data.samples.microbatches import microbatches
from megascratch.data.samples.views import merge_ranges
from megascratch.parallel import groups
from megascratch.parallel.groups import Timeouts
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.rendezvous import Rendezvous, join
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import may_take, set_watched
from megascratch.runtime.launch_environment import launch_environment
from megascratch.runtime.run_log import RUN_LOG, LogFile, close_log, open_log
from megascratch.storage.path import storage_path
from megascratch.supervision.launch import began
from megascratch.tokenizer import Tokenizer
from megascratch.training.checkpointing import (
    ToLoad,
    claim_reports,
    make_ready,
    open_saver,
    resume,
)
from megascratch.training.hardware import keep_freed_memory
from megascratch.training.health.skipped_samples import skipped_samples
from megascratch.training.schedule_trace import traced_step
from megascratch.training.start.agree import DataFiles, ReadyRank, agree
from megascratch.training.start.resume import Resume
from megascratch.training.start.settings import LegalSettings
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer

# data set, consumed samples, number and size of micro-batches -> this rank's batches
ReadStep = Callable[[Dataset, int, int, int], list[Batch]]


@dataclass
class TrainingRun:
    """Everything that one rank of a run holds."""

    config: ResolvedConfig
    mesh: Mesh
    trainer: Trainer
    saver: AsyncSaver
    state: TrainState
    splits: Splits
    read: ReadStep
    tokenizer: Tokenizer | None
    total_steps: int
    traced_step: int | None  # the step whose schedule is timed and drawn
    data_files: DataFiles
    # settings that differ from those of the checkpoint that the run resumes from
    notices: list[str]
    config_text: str  # all settings as YAML
    report_lease: Lease | None  # on the first rank: no other run writes into output_dir
    launch: float  # time.time() when the launcher began, or else this run
    log: LogFile | None = None  # on the first rank, unless it cannot be written
    command: str = ""  # with which the user started the run; '' from Python
    valid_loss: float | None = None  # of that checkpoint, if it is known


def build_run(settings: LegalSettings, problems: Problems, command: str = "") -> TrainingRun:
    """Starts a run on this rank: rendezvous, agree, build, load.

    Args:
        problems: what is wrong with the files of this rank, as far as it is known.
        command: with which the user started the run; '' from Python.

    Raises:
        UserError: anything that the user can fix, and ranks that differ, before any process group starts.
    """
    launch = began()
    timeouts = _timeouts(settings.config.parallel)
    fault_point("run.meet")
    meeting = join(timeouts.start)
    ready = agree(settings, problems, meeting)
    config = ready.inputs.config
    first_notices = notices(config) if launch_environment().rank == 0 else []
    for notice in first_notices:
        note(f"notice: {notice}")
    tied = not config.model.untie_embeddings_and_output_weights
    mesh = _connected(config.parallel, ready.device, meeting, timeouts, tied)
    saver = open_saver(config.training, mesh)
    report_lease: Lease | None = None
    log: LogFile | None = None
    try:
        report_lease = claim_reports(saver, config.training)
        if mesh.is_first:
            log = open_log(config.training.output_dir)
        for notice in first_notices:
            RUN_LOG.info("notice: %s", notice)
        config_text = settings.as_yaml()
        run = _built(ready, mesh, saver, config_text, report_lease, launch)
        run.log = log
        run.command = command
        if ready.checkpoint is not None:
            _load(run, ready.checkpoint)
        if not config.training.skip_train:
            make_ready(saver, config.training, run.trainer.saved())
        fault_point("run.built")
        place = ", ".join(f"{axis} {at}" for axis, at in mesh.position.coords("dense").items())
        detail(
            f"process {os.getpid()} on {socket.gethostname()}, {mesh.device}, {place}: ready after "
            f"{time.time() - launch:.1f} s"
        )
    except BaseException as error:
        RUN_LOG.error("%s: %s", type(error).__name__, error)
        close_log(log)
        saver.close()
        if report_lease is not None:
            report_lease.release()
        raise
    return run


def _timeouts(parallel: ParallelConfig) -> Timeouts:
    step = parallel.distributed_timeout_minutes
    return Timeouts(
        start=timedelta(minutes=parallel.start_timeout_minutes or step),
        load=timedelta(minutes=parallel.load_timeout_minutes or step),
        step=timedelta(minutes=step),
    )


def _connected(
    parallel: ResolvedParallel,
    device: torch.device,
    meeting: Rendezvous | None,
    timeouts: Timeouts,
    tied: bool,
) -> Mesh:
    """Starts this rank's process groups of all axes."""
    set_watched()
    may_take(timeouts.load.total_seconds())
    if device.type == "cpu":
        keep_freed_memory()
    maker = groups.start(parallel.distributed_backend, device, meeting, timeouts)
    return Mesh.build(Layout.of(parallel), device, maker, tied)


def _built(
    ready: ReadyRank,
    mesh: Mesh,
    saver: AsyncSaver,
    config_text: str,
    report_lease: Lease | None,
    launch: float,
) -> TrainingRun:
    """The run at its first step."""
    inputs = ready.inputs
    config = inputs.config
    tokenizer = inputs.tokenizer
    return TrainingRun(
        config=config,
        mesh=mesh,
        trainer=Trainer(config, mesh, inputs.schedule),
        saver=saver,
        state=TrainState(),
        splits=inputs.splits,
        read=_reader(config.data, mesh, tokenizer),
        tokenizer=tokenizer,
        total_steps=inputs.total_steps,
        traced_step=traced_step(config.training, ready.first_step, inputs.total_steps),
        data_files=ready.files,
        notices=ready.notices,
        config_text=config_text,
        report_lease=report_lease,
        launch=launch,
    )


def _load(run: TrainingRun, checkpoint: Resume) -> None:
    """Starts the run from its checkpoint. If the step turns out to be damaged, an older one is loaded."""
    training = run.config.training
    weights_only = checkpoint.weights_only
    what = ToLoad(checkpoint.load, weights_only, checkpoint.begins, not training.skip_train)
    saved = resume(run.saver, what, run.trainer.held())
    if weights_only:
        run.trainer.use_weights()
    if checkpoint.begins:
        return
    run.state = TrainState.from_dict(saved["train_state"])
    if not weights_only:
        run.trainer.restore(run.state)
    run.state.skipped_samples = merge_ranges(
        run.state.skipped_samples, skipped_samples(checkpoint.start.parent)
    )
    run.traced_step = traced_step(run.config.training, run.state.step, run.total_steps)
    run.valid_loss = on_first_rank(
        run.saver.own, partial(_valid_loss, checkpoint.load, run.state.step)
    )


def _valid_loss(load: str, step: int) -> float | None:
    """The validation loss of the checkpoint that was loaded; None if it is not known."""
    path = storage_path(load)
    loss = known_loss(path if is_step(path) else step_folder(path, step))
    return loss if math.isfinite(loss) else None


def _reader(data: DataConfig, mesh: Mesh, tokenizer: Tokenizer | None) -> ReadStep:
    """Reads the micro-batches of a step. Every rank reads its own samples from the files (law 4), so no data is sent
    between ranks."""
    read = partial(
        microbatches,
        seq_length=data.seq_length,
        eod=tokenizer.eod if tokenizer else None,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        eod_mask_loss=data.eod_mask_loss,
    )
    dp = mesh.dp

    def step(dataset: Dataset, consumed: int, num_microbatches: int, size: int) -> list[Batch]:
        return read(dataset, consumed, size, num_microbatches, dp.rank, dp.size)

    return step
