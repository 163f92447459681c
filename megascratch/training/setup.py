"""Builds everything that a run needs from its settings: process groups, model, optimizer, data and checkpoint. The
settings and files, and that all ranks agree on them, are checked before any process group starts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch

from megascratch.checkpoint import AsyncSaver, list_steps, resolve
from megascratch.checkpoint.backend.local_lease import Lease
from megascratch.checkpoint.consensus import on_first_rank
from megascratch.checkpoint.steps import is_step, problem_of, step_folder, step_number
from megascratch.checkpoint.validation_loss import known_loss
from megascratch.config.errors import SettingError, UserError
from megascratch.config.layout import Layout
from megascratch.config.settings import Config
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
    hash_of,
    manifest_digest,
)
from megascratch.training.state import TrainState
from megascratch.training.trainer import Trainer

# data set, consumed samples, number of micro-batches -> this rank's batches
ReadStep = Callable[[Dataset, int, int], list[Batch]]
DataFiles = dict[str, dict[str, Any]]  # digests of the corpora, see data.tokens.fingerprint


@dataclass
class TrainingRun:
    """Everything that one rank of a run holds."""

    config: Config
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
    traced_step: int | None
    device: torch.device
    notices: list[str]


def build_run(config: Config) -> TrainingRun:
    """Checks the inputs, meets the other ranks, builds the trainer and loads the checkpoint. `config` is derived and
    legal.

    Raises:
        UserError: anything that the user can fix, and ranks that differ, before any process group starts.
    """
    timeout = timedelta(minutes=config.parallel.distributed_timeout_minutes)
    fault_point("run.meet")
    meeting = join(timeout)
    ready = _agreed(config, meeting)
    config, tokenizer, splits, total_steps = ready.inputs
    parallel = config.parallel
    device = ready.device
    set_watched()
    if device.type == "cpu":
        keep_freed_memory()
    default_backend = "nccl" if device.type == "cuda" else "gloo"
    meshes.start(parallel.distributed_backend or default_backend, device, meeting)
    mesh = Mesh.build(Layout.of(parallel), device, timeout)
    saver = open_saver(config.training, mesh, timeout)
    report_lease: Lease | None = None
    try:
        report_lease = claim_reports(saver, config.training)
        trainer = Trainer(config, mesh)
        state = TrainState()
        traced_step = ready.traced_step
        valid_loss = None
        if ready.start is not None:
            state = TrainState.from_dict(
                resume(saver, config.training, trainer.held())["train_state"]
            )
            trainer.restore(state)
            state.skipped_samples = merge_ranges(
                state.skipped_samples, skipped_samples(ready.start.parent)
            )
            traced_step = _traced_step(config, state.step, total_steps)
            valid_loss = on_first_rank(
                saver.own, partial(_valid_loss, config.training.load, state.step)
            )
        make_ready(saver, config.training, trainer.held())
        read = _reader(config, mesh, tokenizer)
        fault_point("run.built")
    except BaseException:
        saver.close()
        if report_lease is not None:
            report_lease.release()
        raise
    return TrainingRun(
        config=config,
        mesh=mesh,
        trainer=trainer,
        saver=saver,
        state=state,
        splits=splits,
        read=read,
        tokenizer=tokenizer,
        total_steps=total_steps,
        traced_step=traced_step,
        data_files=ready.files,
        notices=ready.notices,
        report_lease=report_lease,
        valid_loss=valid_loss,
    )


def _valid_loss(load: str | None, step: int) -> float | None:
    """The validation loss of the checkpoint that was loaded; None if it is not known."""
    assert load is not None
    path = storage_path(load)
    loss = known_loss(path if is_step(path) else step_folder(path, step))
    return loss if math.isfinite(loss) else None


def _agreed(config: Config, meeting: Rendezvous | None) -> _Ready:
    """This rank's inputs, after checking that all ranks have the same. Raises: UserError on all ranks if any rank
    cannot start, or if they differ."""
    try:
        ready = _ready(config)
    except UserError as error:
        check_ranks_agree(meeting, RankReport({}, str(error)))
        raise
    tokenizer = ready.inputs.tokenizer
    start = ready.start
    others = {
        "tokenizer": tokenizer.fingerprint[:16] if tokenizer else "none",
        "checkpoint": f"{start.name} {manifest_digest(start)}" if start else "none",
        "skipped samples": str(skipped_samples(start.parent)) if start else "none",
        "schedule": hash_of(config.parallel.pipeline_schedule_csv),
        "device": ready.device.type,
    } | ready.orders
    check_ranks_agree(meeting, RankReport(rank_facts(ready.inputs.config, ready.files, others)))
    return ready


def _ready(config: Config) -> _Ready:
    inputs = open_inputs(config)
    config, tokenizer, splits, total_steps = inputs
    files = fingerprints(splits.corpora)
    start = _checkpoint_to_load(config)
    first_step = _step_of(start)
    require_something_to_learn(config, splits, tokenizer.eod if tokenizer else None, first_step)
    changes: list[str] = []
    consumed = 0
    if start is not None:
        changes = check_resume(start, config, files, tokenizer.fingerprint if tokenizer else None)
        consumed = consumed_samples(start)
    traced_step = _traced_step(config, first_step, total_steps)
    local_rank = launch_environment().local_rank
    device = choose_device(config.training.device, local_rank, config.parallel.distributed_backend)
    orders = recorded(splits.corpora) | splits.order_digests(consumed)
    notices = [*unrecorded(splits.corpora), *changes]
    return _Ready(inputs, start, files, orders, traced_step, device, notices)


def _reader(config: Config, mesh: Mesh, tokenizer: Tokenizer | None) -> ReadStep:
    """Reads the micro-batches of a step. Every rank reads its own samples from the files (law 4), so no data is sent
    between ranks."""
    data = config.data
    read = partial(
        microbatches,
        seq_length=data.seq_length,
        eod=tokenizer.eod if tokenizer else None,
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        eod_mask_loss=data.eod_mask_loss,
    )
    micro_batch_size = config.training.micro_batch_size
    dp = mesh.dp

    def step(dataset: Dataset, consumed: int, num_microbatches: int) -> list[Batch]:
        return read(dataset, consumed, micro_batch_size, num_microbatches, dp.rank, dp.size)

    return step


def _checkpoint_to_load(config: Config) -> Place | None:
    """The checkpoint to resume from; None for a new run.

    Raises: UserError if the run would have to overwrite a newer checkpoint, before it trains.
    """
    training = config.training
    assert training.save is not None
    start = resolve(training.load) if training.load is not None else None
    first_step = _step_of(start)
    newer = [path for path in list_steps(training.save) if step_number(path) > first_step]
    valid = [path for path in newer if not problem_of(path)]
    if valid:
        begin = f"step {first_step}" if start else "scratch"
        raise UserError(
            f"--save {training.save} already holds {valid[0].name} and this run starts from {begin}: a checkpoint is "
            "never overwritten; use --auto-resume to resume from it, another --output-dir, or delete it"
        )
    return start


def _step_of(start: Place | None) -> int:
    """The step of a checkpoint; 0 if there is none."""
    return step_number(start) if start else 0


def _traced_step(config: Config, done: int, total_steps: int) -> int | None:
    """The step whose schedule is timed. The default is the fifth of this run, because the first ones are slow."""
    asked = config.training.trace_schedule_step
    if not config.training.trace_schedule or done >= total_steps:
        return None
    if asked is not None and not done < asked <= total_steps:
        raise SettingError(
            f"trace-schedule-step ({asked}) must be a step of this run: use {done + 1} to {total_steps}"
        )
    return asked or min(done + 5, total_steps)
