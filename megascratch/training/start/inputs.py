"""Opens and checks what the settings name: the tokenizer, the data sets and a pipeline schedule from a CSV file. Needs
no torch, so a launcher can check the inputs before it starts workers.
"""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megascratch.config.batch_size import samples_asked_for, steps_and_samples
from megascratch.config.errors import Problems, UserError
from megascratch.config.fields import with_fields
from megascratch.config.laws import validate
from megascratch.config.layout import Layout
from megascratch.config.settings import Config
from megascratch.data.samples.build import Splits, open_splits
from megascratch.data.samples.split_spec import DEFAULT_SPLIT, named_prefixes, shares
from megascratch.data.tokens.token_files import bin_path, idx_path, open_map
from megascratch.pipeline.csv_schedule import CsvSchedule, read_table
from megascratch.storage.path import storage_path
from megascratch.storage.store import Store
from megascratch.tokenizer import Tokenizer, load


class Inputs(NamedTuple):
    """What a run reads."""

    config: Config  # with vocab_size filled in from the tokenizer
    tokenizer: Tokenizer | None
    splits: Splits
    total_steps: int


def open_inputs(config: Config) -> Inputs:
    """Opens the inputs of a run. `config` is derived and legal.

    Raises:
        UserError: missing or damaged files, data of another tokenizer, ids outside the vocabulary, too little data, or
            a schedule that is invalid or does not match the layout.
    """
    problems = Problems()
    problems.attempt(lambda: own_schedule(config))
    for flag, folder in (
        ("--output-dir", config.training.output_dir),
        ("--save", config.training.save),
        ("--tensorboard-dir", config.training.tensorboard_dir),
    ):
        problems.attempt(partial(_require_folder, flag, folder))
    problems.lines += missing_files(config)
    tokenizer = problems.attempt(lambda: open_tokenizer(config))
    problems.require_none()  # the data cannot be judged without its tokenizer
    config = with_fields(config, {"vocab_size": _vocab_size(config, tokenizer)})
    _require_laws_of_the_vocabulary(config)
    problems.attempt(lambda: _require_document_ends(config, tokenizer))
    total_steps, total_samples = steps_and_samples(config)
    splits = problems.attempt(lambda: _open_data(config, tokenizer, total_steps, total_samples))
    problems.require_none()
    assert splits is not None
    return Inputs(config, tokenizer, splits, total_steps)


def missing_files(config: Config) -> list[str]:
    """One line for each file that the settings name and that cannot be read, even if the settings are not legal."""
    data = config.data
    problems = Problems()
    paths: list[list[str] | None] = [
        data.data_path,
        data.train_data_path,
        data.valid_data_path,
        data.test_data_path,
    ]
    for stage in data.data_stages or ():
        paths.append(stage.split()[1:])
    for prefix in named_prefixes(paths):
        problems.attempt(partial(open_map, idx_path(prefix), "index"))
        problems.attempt(partial(open_map, bin_path(prefix), "token file"))
    problems.attempt(partial(_require_checkpoint, config.training.load))
    problems.attempt(partial(_require_library, config.training.save))
    for name, path in (
        ("--tokenizer-model", data.tokenizer_model),
        ("--pipeline-schedule-csv", config.parallel.pipeline_schedule_csv),
    ):
        if path is not None and not os.access(path, os.R_OK):
            problems.lines.append(
                f"{name} {path}: cannot be read: there is no readable file or folder of this name"
            )
    return problems.lines


def _require_checkpoint(load: str | None) -> None:
    """Raises: UserError if there is nothing at `load`. Its content is checked later."""
    if load is None:
        return
    where = storage_path(load)
    there = (
        os.access(where, os.R_OK) if isinstance(where, Path) else Store(where.url).names(where.url)
    )
    if not there:
        raise UserError(
            f"--load {load}: no checkpoint: there is no readable file or folder of this name"
        )


def _require_library(save: str | None) -> None:
    """Raises: UserError if the library that accesses the object store is not installed."""
    if save is None:
        return
    where = storage_path(save)
    if not isinstance(where, Path):
        Store(where.url)


def open_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer that the settings name; None if they only give a vocab_size."""
    data = config.data
    if data.tokenizer_type is None and data.tokenizer_model is None:
        return None
    return load(data.tokenizer_type, data.tokenizer_model, config.model.vocab_size)


def own_schedule(config: Config) -> CsvSchedule | None:
    """The schedule of --pipeline-schedule-csv, proved complete, free of deadlock and right for the size of this run;
    None if the flag is not given.

    Raises:
        UserError: the schedule is invalid (names the file, rank and action) or does not match the layout.
    """
    parallel = config.parallel
    training = config.training
    if parallel.pipeline_schedule_csv is None:
        return None
    table = read_table(parallel.pipeline_schedule_csv)
    ranks = parallel.pipeline_model_parallel_size
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    if table.placement[:2] != (ranks, chunks):
        raise UserError(
            f"{table.path} has {table.placement.ranks} ranks of {table.placement.chunks} stages, but "
            f"pipeline-model-parallel-size is {ranks} and num-virtual-stages-per-pipeline-rank {chunks}: make them "
            f"{table.placement.ranks} and {table.placement.chunks}"
        )
    assert training.global_batch_size is not None
    samples_at_once = training.micro_batch_size * (parallel.data_parallel_size or 1)
    table.of(training.global_batch_size // samples_at_once)
    return table


def _vocab_size(config: Config, tokenizer: Tokenizer | None) -> int:
    given = config.model.vocab_size
    if tokenizer is None:
        assert given is not None  # a law of validate()
        return given
    if given is not None and given < tokenizer.vocab_size:
        raise UserError(
            f"vocab-size ({given}) must hold the tokenizer's {tokenizer.vocab_size} ids: "
            f"use {tokenizer.vocab_size} or more, or remove the setting"
        )
    return given or tokenizer.vocab_size


def _require_laws_of_the_vocabulary(config: Config) -> None:
    """Checks the settings again now that the vocabulary size is known, which the tokenizer determines.

    Raises: SettingError.
    """
    validate(config, Layout.of(config.parallel).world)


def _require_folder(flag: str, path: str | None) -> None:
    """Checks that a local folder exists or can be created. Nothing that it creates is left behind.

    Raises: UserError.
    """
    if path is None or not isinstance(storage_path(path), Path):
        return
    absolute = Path(path).absolute()
    nearest = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{flag} {path} cannot be created: {nearest} is not a folder")
    try:
        with tempfile.TemporaryDirectory(prefix=".megascratch-", dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be created: {nearest} cannot be written: {error.strerror}"
        ) from error


def _require_document_ends(config: Config, tokenizer: Tokenizer | None) -> None:
    data = config.data
    asked = data.reset_position_ids or data.reset_attention_mask or data.eod_mask_loss
    if asked and (tokenizer is None or tokenizer.eod is None):
        raise UserError(
            "--reset-position-ids, --reset-attention-mask and --eod-mask-loss need a tokenizer with an end-of-document "
            "id: name one with --tokenizer-model, or remove the flags"
        )


def _open_data(
    config: Config, tokenizer: Tokenizer | None, total_steps: int, total_samples: int
) -> Splits:
    training = config.training
    data = config.data
    evaluated = training.eval_iters * (training.global_batch_size or 1)
    has_valid = data.valid_data_path is not None or data.mock_data
    if not has_valid and data.data_path is not None:
        _, valid_share, _ = shares(data.split or DEFAULT_SPLIT)
        has_valid = valid_share > 0
    valid_samples = 0
    if has_valid and training.eval_interval > 0:
        valid_samples = evaluated
        if data.data_order == "megatron":
            # It reads different samples in each validation, and their total number determines their order.
            valid_samples *= total_steps // training.eval_interval + 1
    return open_splits(
        data,
        seed=training.seed,
        vocab_size=config.model.vocab_size or 0,
        eod=tokenizer.eod if tokenizer else None,
        fingerprint=tokenizer.fingerprint if tokenizer else None,
        train_samples=samples_asked_for(config),
        samples_read=total_samples,
        valid_samples=valid_samples,
        test_samples=evaluated if data.test_data_path else 0,
    )
