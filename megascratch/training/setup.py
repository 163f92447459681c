"""Builds everything that a run needs from its settings: process groups, model, optimizer, data and checkpoint. The
settings and files, and that all ranks agree on them, are checked before any process group starts.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch

from megascratch.checkpoint import AsyncSaver
from megascratch.checkpoint.backend.local_lease import Lease
from megascratch.checkpoint.consensus import on_first_rank
from megascratch.checkpoint.steps import is_step, step_folder
from megascratch.checkpoint.validation_loss import known_loss
from megascratch.config.errors import Problems, SettingError, UserError
from megascratch.config.fields import flat
from megascratch.config.layout import Layout
from megascratch.config.notices import notices
from megascratch.config.resolve import Device, Found, ResolvedConfig, ResolvedParallel
from megascratch.config.settings import DataConfig, TrainingConfig
from megascratch.data.samples.batch import Batch
from megascratch.data.samples.build import Splits
from megascratch.data.samples.dataset import Dataset
from megascratch.data.samples.microbatches import microbatches
from megascratch.data.samples.views import merge_ranges
from megascratch.data.tokens.fingerprint import fingerprints, recorded, unrecorded
from megascratch.parallel import mesh as meshes
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.rendezvous import Rendezvous, join
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import set_watched
from megascratch.runtime.launch_environment import launch_environment
from megascratch.storage.path import Place, storage_path
from megascratch.tokenizer import Tokenizer
from megascratch.training.checkpointing import claim_reports, make_ready, open_saver, resume
from megascratch.training.hardware import choose_device, keep_freed_memory
from megascratch.training.health.nothing_to_learn import require_something_to_learn
from megascratch.training.health.skipped_samples import skipped_samples
from megascratch.training.start.inputs import Inputs, open_inputs
from megascratch.training.start.preflight import RankReport, check_ranks_agree, rank_facts
from megascratch.training.start.resume import (
    check_resume,
    consumed_samples,
    find_checkpoint,
    hash_of,
    manifest_digest,
    step_of,
)
from megascratch.training.start.settings import LegalSettings
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer

# data set, consumed samples, number of micro-batches -> this rank's batches
ReadStep = Callable[[Dataset, int, int], list[Batch]]
DataFiles = dict[str, dict[str, Any]]  # digests of the corpora, see data.tokens.fingerprint


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
    report_lease: Lease | None  # on the first rank: no other run writes into output_dir
    valid_loss: float | None = None  # of that checkpoint, if it is known


class _Ready(NamedTuple):
    """What a rank has opened and checked before the process group starts."""

    inputs: Inputs
    start: Place | None  # the checkpoint to resume from
    files: DataFiles
    orders: dict[str, str]  # digests of the samples that it will read, in their order
    device: torch.device
    notices: list[str]


def build_run(settings: LegalSettings, problems: Problems) -> TrainingRun:
    """Starts a run on this rank: rendezvous, agree, build, load.

    Args:
        problems: what is wrong with the files of this rank, as far as it is known.

    Raises:
        UserError: anything that the user can fix, and ranks that differ, before any process group starts.
    """
    timeout = timedelta(minutes=settings.config.parallel.distributed_timeout_minutes)
    fault_point("run.meet")
    meeting = join(timeout)
    ready = _agreed(settings, problems, meeting)
    config = ready.inputs.config
    if launch_environment().rank == 0:
        for notice in notices(config):
            print(f"notice: {notice}", file=sys.stderr)
    mesh = _connected(config.parallel, ready.device, meeting, timeout)
    saver = open_saver(config.training, mesh, timeout)
    report_lease: Lease | None = None
    try:
        report_lease = claim_reports(saver, config.training)
        run = _built(ready, mesh, saver, report_lease)
        if ready.start is not None:
            _load(run, ready.start)
        make_ready(saver, config.training, run.trainer.held())
        fault_point("run.built")
    except BaseException:
        saver.close()
        if report_lease is not None:
            report_lease.release()
        raise
    return run


def _connected(
    parallel: ResolvedParallel,
    device: torch.device,
    meeting: Rendezvous | None,
    timeout: timedelta,
) -> Mesh:
    """Starts the process groups of all axes."""
    set_watched()
    if device.type == "cpu":
        keep_freed_memory()
    meshes.start(parallel.distributed_backend, device, meeting)
    return Mesh.build(Layout.of(parallel), device, timeout)


def _built(ready: _Ready, mesh: Mesh, saver: AsyncSaver, report_lease: Lease | None) -> TrainingRun:
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
        read=_reader(config.data, config.training.micro_batch_size, mesh, tokenizer),
        tokenizer=tokenizer,
        total_steps=inputs.total_steps,
        traced_step=_traced_step(config.training, step_of(ready.start), inputs.total_steps),
        data_files=ready.files,
        notices=ready.notices,
        report_lease=report_lease,
    )


def _load(run: TrainingRun, start: Place) -> None:
    """Continues the run at its checkpoint. If `start` turns out to be damaged, an older step is loaded."""
    training = run.config.training
    saved = resume(run.saver, training, run.trainer.held())
    run.state = TrainState.from_dict(saved["train_state"])
    run.trainer.restore(run.state)
    run.state.skipped_samples = merge_ranges(
        run.state.skipped_samples, skipped_samples(start.parent)
    )
    run.traced_step = _traced_step(training, run.state.step, run.total_steps)
    run.valid_loss = on_first_rank(
        run.saver.own, partial(_valid_loss, training.load, run.state.step)
    )


def _valid_loss(load: str | None, step: int) -> float | None:
    """The validation loss of the checkpoint that was loaded; None if it is not known."""
    assert load is not None
    path = storage_path(load)
    loss = known_loss(path if is_step(path) else step_folder(path, step))
    return loss if math.isfinite(loss) else None


def _agreed(settings: LegalSettings, problems: Problems, meeting: Rendezvous | None) -> _Ready:
    """This rank's inputs, after checking that all ranks have the same. Raises: UserError on all ranks if any rank
    cannot start, or if they differ."""
    try:
        ready = _ready(settings, problems)
    except UserError as error:
        check_ranks_agree(meeting, RankReport({}, str(error)))
        raise
    config = ready.inputs.config
    tokenizer = ready.inputs.tokenizer
    start = ready.start
    others = {
        "tokenizer": tokenizer.fingerprint[:16] if tokenizer else "none",
        "checkpoint": f"{start.name} {manifest_digest(start)}" if start else "none",
        "skipped samples": str(skipped_samples(start.parent)) if start else "none",
        "schedule": hash_of(config.parallel.pipeline_schedule_csv),
        "device": ready.device.type,
    } | ready.orders
    check_ranks_agree(meeting, RankReport(rank_facts(flat(config), ready.files, others)))
    return ready


class _Here(NamedTuple):
    """What a rank looks up before its settings are resolved."""

    found: Found
    start: Place | None  # the checkpoint to resume from
    device: torch.device


def _look_up(settings: LegalSettings) -> _Here:
    """Finds the checkpoint and the device of this rank. Raises: UserError if there is none."""
    config = settings.config
    batch_is_given = settings.given["global_batch_size"] is not None
    checkpoint = find_checkpoint(flat(config), batch_is_given)
    local_rank = launch_environment().local_rank
    device = choose_device(config.training.device, local_rank, config.parallel.distributed_backend)
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    found = Found(load=checkpoint.load, global_batch_size=checkpoint.batch, device=kind)
    return _Here(found, checkpoint.start, device)


def _ready(settings: LegalSettings, problems: Problems) -> _Ready:
    here = problems.attempt(partial(_look_up, settings))
    inputs = open_inputs(settings, here.found if here else Found(), problems)
    assert here is not None  # else there was a problem
    config = inputs.config
    start = here.start
    eod = inputs.tokenizer.eod if inputs.tokenizer else None
    fingerprint = inputs.tokenizer.fingerprint if inputs.tokenizer else None
    first_step = step_of(start)
    require_something_to_learn(config.training, config.data, inputs.splits, eod, first_step)
    files = fingerprints(inputs.splits.corpora)
    changes: list[str] = []
    consumed = 0
    if start is not None:
        changes = check_resume(start, flat(config), files, fingerprint)
        consumed = consumed_samples(start)
    _traced_step(config.training, first_step, inputs.total_steps)  # it must be a step of this run
    orders = recorded(inputs.splits.corpora) | inputs.splits.order_digests(consumed)
    notes = [*unrecorded(inputs.splits.corpora), *changes]
    return _Ready(inputs, start, files, orders, here.device, notes)


def _reader(
    data: DataConfig, micro_batch_size: int, mesh: Mesh, tokenizer: Tokenizer | None
) -> ReadStep:
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

    def step(dataset: Dataset, consumed: int, num_microbatches: int) -> list[Batch]:
        return read(dataset, consumed, micro_batch_size, num_microbatches, dp.rank, dp.size)

    return step


def _traced_step(training: TrainingConfig, done: int, total_steps: int) -> int | None:
    """The step whose schedule is timed. The default is the fifth of this run, because the first ones are slow."""
    asked = training.trace_schedule_step
    if not training.trace_schedule or done >= total_steps:
        return None
    if asked is not None and not done < asked <= total_steps:
        raise SettingError(
            f"trace-schedule-step ({asked}) must be a step of this run: use {done + 1} to {total_steps}"
        )
    return asked or min(done + 5, total_steps)
