"""Opens what a rank needs, and proves that all ranks have the same, before any process group starts."""

from functools import partial
from typing import Any, NamedTuple, cast

import torch

from megascratch.config.errors import Problems, UserError
from megascratch.config.fields import flat
from megascratch.config.imports import import_digests
from megascratch.config.resolve import Device, Found
from megascratch.config.settings import TrainingConfig
from megascratch.data.tokens.file_digests import NOTHING_KNOWN, KnownDigests
from megascratch.data.tokens.fingerprint import fingerprints, recorded, unrecorded
from megascratch.model.own_parts import require_own_parts
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.runtime.launch_environment import launch_environment
from megascratch.training.hardware import choose_device
from megascratch.training.health.nothing_to_learn import require_something_to_learn
from megascratch.training.health.skipped_samples import skipped_samples
from megascratch.training.schedule_trace import traced_step
from megascratch.training.start.inputs import Inputs, open_inputs
from megascratch.training.start.once import shared_checkpoint, shared_digests
from megascratch.training.start.preflight import RankReport, check_ranks_agree, rank_facts
from megascratch.training.start.resume import (
    Resume,
    check_resume,
    consumed_samples,
    hash_of,
)
from megascratch.training.start.settings import LegalSettings

DataFiles = dict[str, dict[str, Any]]  # digests of the corpora, see data.tokens.fingerprint


class ReadyRank(NamedTuple):
    """What a rank has opened and checked before the process group starts."""

    inputs: Inputs
    checkpoint: Resume | None  # to resume from
    files: DataFiles
    orders: dict[str, str]  # digests of the samples that it will read, in their order
    device: torch.device
    notices: list[str]

    @property
    def first_step(self) -> int:
        """The step that the run starts from."""
        return self.checkpoint.step if self.checkpoint else 0


def agree(settings: LegalSettings, problems: Problems, meeting: Rendezvous | None) -> ReadyRank:
    """Opens this rank's inputs, and checks that all ranks have the same.

    Args:
        problems: what is wrong with the files of this rank, as far as it is known.

    Raises: UserError on all ranks if any rank cannot start, or if they differ.
    """
    try:
        # a rank that cannot start does not ask, so no other one waits for its answer
        shared = None if problems.lines else shared_digests(meeting, flat(settings.config))
        ready = _ready(settings, problems, meeting, shared.files if shared else NOTHING_KNOWN)
    except UserError as error:
        check_ranks_agree(meeting, RankReport({}, str(error)))
        raise
    assert shared is not None  # else there was a problem
    config = ready.inputs.config
    tokenizer = ready.inputs.tokenizer
    checkpoint = "none"
    skipped = "none"
    if ready.checkpoint is not None:
        start = ready.checkpoint.start
        checkpoint = f"{start.name} {ready.checkpoint.digest}"
        skipped = str(skipped_samples(start.parent))
    others = {
        "tokenizer": tokenizer.fingerprint[:16] if tokenizer else "none",
        "checkpoint": checkpoint,
        "skipped samples": skipped,
        "schedule": hash_of(config.parallel.pipeline_schedule_csv),
        "device": ready.device.type,
    } | ready.orders
    others |= imported_facts()
    facts = rank_facts(flat(config), ready.files, shared.code, others)
    check_ranks_agree(meeting, RankReport(facts))
    return ready


def imported_facts() -> dict[str, str]:
    """The user's own code that this rank has run: all ranks must have run the same."""
    return {f"import {source}": digest for source, digest in import_digests().items()}


def _start_notes(training: TrainingConfig, checkpoint: Resume | None) -> list[str]:
    """What the user should know about the checkpoint that the run starts from."""
    if checkpoint is None and training.load is not None:
        return [f"load ({training.load}) has no checkpoint: the run starts from scratch"]
    if checkpoint is None:
        return []
    if checkpoint.begins:
        return [f"a new run begins with the weights of {checkpoint.start}"]
    if checkpoint.weights_only:
        return [f"the optimizer starts without the history that {checkpoint.start} may have"]
    return []


class _Here(NamedTuple):
    """What a rank looks up before its settings are resolved."""

    found: Found
    checkpoint: Resume | None  # to resume from
    device: torch.device


def _look_up(settings: LegalSettings, meeting: Rendezvous | None) -> _Here:
    """Finds the checkpoint and the device of this rank. Raises: UserError if there is none."""
    config = settings.config
    given = settings.given
    batch_is_given = bool(given["global_batch_size"] or given["step_batch_size_schedule"])
    checkpoint = shared_checkpoint(meeting, flat(config), batch_is_given)
    local_rank = launch_environment().local_rank
    device = choose_device(config.training.device, local_rank, config.parallel.distributed_backend)
    found = Found(device=cast(Device, device.type))
    if checkpoint is not None:
        found = found._replace(
            load=checkpoint.load,
            global_batch_size=checkpoint.batch,
            padded_vocab_size=checkpoint.padded_vocab_size,
        )
    return _Here(found, checkpoint, device)


def _ready(
    settings: LegalSettings, problems: Problems, meeting: Rendezvous | None, known: KnownDigests
) -> ReadyRank:
    here = None if problems.lines else problems.attempt(partial(_look_up, settings, meeting))
    inputs = open_inputs(settings, here.found if here else Found(), problems, known)
    assert here is not None  # else there was a problem
    config = inputs.config
    require_own_parts(config.model, config.optim, config.data.seq_length)
    eod = inputs.tokenizer.eod if inputs.tokenizer else None
    fingerprint = inputs.tokenizer.fingerprint if inputs.tokenizer else None
    first_step = here.checkpoint.step if here.checkpoint else 0
    require_something_to_learn(config.training, config.data, inputs.splits, eod, first_step)
    files = fingerprints(inputs.splits.corpora, known)
    changes: list[str] = []
    consumed = 0
    if here.checkpoint is not None:
        changes = check_resume(here.checkpoint, flat(config), files, fingerprint)
        consumed = consumed_samples(here.checkpoint)
    traced_step(config.training, first_step, inputs.total_steps)  # it must be a step of this run
    orders = recorded(inputs.splits.corpora) | inputs.splits.order_digests(consumed)
    notes = [*unrecorded(inputs.splits.corpora), *inputs.splits.cuts, *changes]
    notes += _start_notes(settings.config.training, here.checkpoint)
    return ReadyRank(inputs, here.checkpoint, files, orders, here.device, notes)
