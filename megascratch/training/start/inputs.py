"""Opens and checks what the settings of a run name: the tokenizer, the data sets and a pipeline schedule from a CSV
file. Needs no torch, so a launcher can check the inputs before it starts workers.
"""

from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple

from megascratch.config.batch_size import (
    evaluation_batch,
    samples_asked_for,
    steps_and_samples,
)
from megascratch.config.errors import Problems, UserError
from megascratch.config.fields import flat
from megascratch.config.registry import is_registered
from megascratch.config.resolve import Found, ResolvedConfig, ResolvedTraining, Values
from megascratch.config.settings import DataConfig
from megascratch.data.samples.build import Splits, open_splits
from megascratch.data.samples.split_spec import DEFAULT_SPLIT, shares
from megascratch.data.tokens.file_digests import NOTHING_KNOWN, KnownDigests
from megascratch.pipeline.csv_schedule import CsvSchedule, read_table
from megascratch.pipeline.passes import compile_order
from megascratch.tokenizer import Tokenizer, TokenizerSource
from megascratch.training.start.files import require_folders
from megascratch.training.start.settings import LegalSettings


class Inputs(NamedTuple):
    """The resolved settings of a run, and what it reads."""

    config: ResolvedConfig
    tokenizer: Tokenizer | None
    splits: Splits
    schedule: CsvSchedule | None
    total_steps: int


def open_inputs(
    settings: LegalSettings,
    found: Found,
    problems: Problems,
    known: KnownDigests = NOTHING_KNOWN,
) -> Inputs:
    """Opens everything that the settings name, resolves them with what it says, and checks the two together.

    Args:
        found: what else this process has looked up: a rank its checkpoint and device, a launcher nothing.
        problems: what is wrong already; all problems are reported at once.
        known: digests of data files that need not be computed again.

    Raises:
        UserError: missing or damaged files, data of another tokenizer, ids outside the vocabulary, too little data, or
            a schedule that is invalid or does not match the layout.
    """
    derived = flat(settings.config)
    data = settings.config.data
    vocab_size = settings.config.model.vocab_size
    schedule = problems.attempt(partial(own_schedule, derived | found.values()))
    problems.attempt(partial(require_folders, derived))
    tokenizer = problems.attempt(partial(open_tokenizer, data, vocab_size))
    problems.require_none()  # the data cannot be judged without its tokenizer
    config = settings.resolve(found._replace(vocab_size=_vocab_size(vocab_size, tokenizer)))
    problems.attempt(partial(_require_document_ends, config.data, tokenizer))
    read = problems.attempt(partial(_with_fim_ids, config.data, tokenizer))
    splits = problems.attempt(
        partial(
            _open_data,
            read or config.data,
            config.training,
            config.model.vocab_size,
            tokenizer,
            known,
        )
    )
    problems.require_none()
    assert splits is not None
    total_steps, _ = steps_and_samples(config.training)
    return Inputs(config, tokenizer, splits, schedule, total_steps)


def open_tokenizer(data: DataConfig, vocab_size: int | None) -> Tokenizer | None:
    """The tokenizer that the settings name; None if they only give a vocab_size."""
    source = TokenizerSource.of(data, vocab_size)
    return source.load() if source.is_named else None


def own_schedule(settings: Values) -> CsvSchedule | None:
    """The schedule of --pipeline-schedule-csv, proved complete, free of deadlock and right for the size of this run;
    None if the flag is not given.

    Args:
        settings: derived and legal.

    Raises:
        UserError: the schedule is invalid (names the file, rank and action) or does not match the layout.
    """
    if settings["pipeline_schedule_csv"] is None:
        _try_registered(settings)
        return None
    table = read_table(settings["pipeline_schedule_csv"])
    ranks = settings["pipeline_model_parallel_size"]
    chunks = settings["num_virtual_stages_per_pipeline_rank"]
    if table.placement[:2] != (ranks, chunks):
        raise UserError(
            f"{table.path} has {table.placement.ranks} ranks of {table.placement.chunks} stages, but "
            f"pipeline-model-parallel-size is {ranks} and num-virtual-stages-per-pipeline-rank {chunks}: make them "
            f"{table.placement.ranks} and {table.placement.chunks}"
        )
    samples_at_once = settings["micro_batch_size"] * settings["data_parallel_size"]
    table.of(settings["global_batch_size"] // samples_at_once)
    return table


def _try_registered(settings: Values) -> None:
    """Raises: UserError if the schedule is one that a user registered, and is wrong for the size of this run."""
    name = settings["pipeline_schedule"]
    samples_at_once = settings["micro_batch_size"] * settings["data_parallel_size"]
    if is_registered("schedule", name):
        compile_order(
            name,
            settings["pipeline_model_parallel_size"],
            settings["global_batch_size"] // samples_at_once,
            settings["num_virtual_stages_per_pipeline_rank"],
            settings["microbatch_group_size_per_virtual_pipeline_stage"],
        )


def _vocab_size(given: int | None, tokenizer: Tokenizer | None) -> int | None:
    """The size of the vocabulary, which holds the ids of the tokenizer. Raises: UserError."""
    if tokenizer is None:
        return given
    if given is not None and given < tokenizer.vocab_size:
        raise UserError(
            f"vocab-size ({given}) must hold the tokenizer's {tokenizer.vocab_size} ids: "
            f"use {tokenizer.vocab_size} or more, or remove the setting"
        )
    return given or tokenizer.vocab_size


def _require_document_ends(data: DataConfig, tokenizer: Tokenizer | None) -> None:
    asked = data.reset_position_ids or data.reset_attention_mask or data.eod_mask_loss
    if asked and (tokenizer is None or tokenizer.eod is None):
        raise UserError(
            "--reset-position-ids, --reset-attention-mask and --eod-mask-loss need a tokenizer with an end-of-document "
            "id: name one with --tokenizer-model, or remove the flags"
        )


def _with_fim_ids(data: DataConfig, tokenizer: Tokenizer | None) -> DataConfig:
    """The settings with the ids of the fill-in-the-middle tokens that are given by name. Raises: UserError."""
    ids = {
        "prefix": data.fim_prefix_id,
        "middle": data.fim_middle_id,
        "suffix": data.fim_suffix_id,
    }
    tokens = {
        "prefix": data.fim_prefix_token,
        "middle": data.fim_middle_token,
        "suffix": data.fim_suffix_token,
    }
    for part, token in tokens.items():
        if token is None:
            continue
        if tokenizer is None:
            raise UserError(
                f"fim-{part}-token ({token}) needs a tokenizer: name one with --tokenizer-model, or give "
                f"fim-{part}-id"
            )
        ids[part] = tokenizer.id_of(token)
        if ids[part] is None:
            raise UserError(
                f"fim-{part}-token ({token}) is not a token of this {tokenizer.kind} "
                f"({tokenizer.vocab_size} ids){_similar(token, tokenizer)}"
            )
    given = [number for number in ids.values() if number is not None]
    if len(set(given)) < len(given):
        raise UserError(f"the fim tokens have the ids {given}, which must differ")
    return replace(
        data,
        fim_prefix_id=ids["prefix"],
        fim_middle_id=ids["middle"],
        fim_suffix_id=ids["suffix"],
    )


def _similar(token: str, tokenizer: Tokenizer) -> str:
    """The special tokens that may be meant, or how to do without a name."""
    words = get_close_matches(token, [*tokenizer.specials, *tokenizer.special_words], n=3)
    if words:
        return f": did you mean {' or '.join(dict.fromkeys(words))}?"
    return ": use a tokenizer that has it, or give the ids of three tokens that no text uses"


def _open_data(
    data: DataConfig,
    training: ResolvedTraining,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    known: KnownDigests,
) -> Splits:
    total_steps, total_samples = steps_and_samples(training)
    evaluated = training.eval_iters * evaluation_batch(training).sequences
    has_valid = data.valid_data_path is not None or data.mock_data
    if not has_valid and data.data_path is not None:
        _, valid_share, _ = shares(data.split or DEFAULT_SPLIT)
        has_valid = valid_share > 0
    valid_samples = 0
    validates = training.eval_interval > 0 or training.skip_train
    if has_valid and validates and training.eval_iters > 0:
        valid_samples = evaluated
        if data.data_order == "megatron":
            # It reads different samples in each validation, and their total number determines their order.
            valid_samples *= total_steps // (training.eval_interval or total_steps) + 1
    return open_splits(
        data,
        seed=training.seed,
        vocab_size=vocab_size,
        eod=tokenizer.eod if tokenizer else None,
        fingerprint=tokenizer.fingerprint if tokenizer else None,
        train_samples=samples_asked_for(training),
        samples_read=total_samples,
        valid_samples=valid_samples,
        test_samples=evaluated if data.test_data_path else 0,
        known=known,
    )
