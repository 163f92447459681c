"""Decides which settings may change when a run resumes from a checkpoint, and which changes are reported or refused.

Every setting is in exactly one row of `ROWS`. *free*: a change affects no result. *notice*: a change is allowed and
reported. *refused*: a change needs the setting's name in `force_resume`. *fixed*: a change cannot be forced, since the
checkpoint's tensors would not fit. If the kind of a change depends on other settings, the row has a function for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from megascratch.config.fields import flag

Kind = Literal["free", "notice", "refused", "fixed"]
Settings = Mapping[str, Any]

DATA_FILES = "data_files"
TOKENIZER = "tokenizer"
"""Names that can be forced in addition to those of settings."""

KINDS: dict[Kind, str] = {
    "free": "may change: no result depends on it",
    "notice": "may change; the run reports it",
    "refused": "is refused unless --force-resume names it",
    "fixed": "is refused and cannot be forced: the checkpoint's tensors would not fit",
}


@dataclass(frozen=True)
class Side:
    """The settings, data files and tokenizer of a run, either from the checkpoint or as they are now."""

    settings: Settings
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Prefix of each corpus -> its digests by file (`data.tokens.fingerprint`)."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer; None: unknown."""


class Change(NamedTuple):
    """A setting on both sides, and what the effect of a change may depend on."""

    name: str
    before: Side
    now: Side
    consumed_samples: int

    @property
    def values(self) -> tuple[Any, Any]:
        return self.before.settings[self.name], self.now.settings[self.name]


class ResumeVerdict(NamedTuple):
    """What a resume reports and what it refuses, one sentence per change."""

    notices: list[str]
    refusals: list[str]


Judged = tuple[Kind, str]
"""The kind of a change and its effect."""


class ResumeRule(NamedTuple):
    """Settings with the same rule."""

    kind: Kind
    effect: str
    """The effect of a change."""
    names: str
    unless: Callable[[Change], Judged | None] | None = None
    """Returns another kind and effect if the other settings call for it."""
    exception: str = ""
    """Describes `unless`."""


def _same_text(change: Change) -> Judged | None:
    """A notice if the files have the same tokens in the same order under other names."""
    before = change.before.settings[change.name] or []
    now = change.now.settings[change.name] or []
    if len(before) != len(now):
        return None
    for text_before, text_now in zip(before, now, strict=True):
        words_before = text_before.split()
        words_now = text_now.split()
        if len(words_before) != len(words_now):
            return None
        if not all(same_corpus(a, b, change) for a, b in zip(words_before, words_now, strict=True)):
            return None
    return "notice", "the same tokens under another name"


def same_corpus(a: str, b: str, change: Change) -> bool:
    """Whether two words of a path (a prefix or a weight) mean the same tokens."""
    if a == b:
        return True
    before = change.before.files.get(a)
    now = change.now.files.get(b)
    if before is None or now is None:
        return False
    return not differing_files(before, now)


def differing_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Suffixes of a corpus's files that differ: a digest that both sides know differs, or one side lacks the file."""

    def differ(suffix: str) -> bool:
        if suffix not in before or suffix not in now:
            return True
        one = before[suffix]
        other = now[suffix]
        return any(one[key] != other[key] for key in one.keys() & other.keys())

    return [suffix for suffix in sorted(before.keys() | now.keys()) if differ(suffix)]


def _only_later_stages(change: Change) -> Judged | None:
    """A notice if only stages change that begin after the checkpoint: nothing of them has been read yet."""
    begun = []
    for stages in change.values:
        begun.append(
            [
                stage.split()
                for stage in stages or []
                if _first_sample(stage) < change.consumed_samples
            ]
        )
    if begun[0] == begun[1]:
        return "notice", f"stages after sample {change.consumed_samples:,} differ"
    return _same_text(change)


def _first_sample(stage: str) -> int:
    """The first sample of a stage; 0 if a checkpoint has something unreadable here."""
    words = stage.split()
    if words and words[0].isdecimal() and len(words[0]) < 20:
        return int(words[0])
    return 0


def _in_megatrons_order(kind: Kind, effect: str) -> Callable[[Change], Judged | None]:
    """Another kind with data_order megatron, whose order depends on the number of samples that a run requests."""
    return lambda change: (
        (kind, effect) if change.now.settings["data_order"] == "megatron" else None
    )


def _same_ids(change: Change) -> Judged | None:
    before = change.before.tokenizer
    now = change.now.tokenizer
    if before is not None and before == now:
        return "free", "the ids are the same"
    return None


def _without_position_table(change: Change) -> Judged | None:
    sides = change.before.settings, change.now.settings
    if all(side["position_embedding_type"] == "learned_absolute" for side in sides):
        return None
    return "free", "there is no table of learned positions"


OTHER_ORDER = "the order of the samples changes: some would be read twice, some never"
OTHER_TEXT = "the model reads different text"
OTHER_TENSORS = "the model has different tensors"
OTHER_FUNCTION = "the same weights compute a different function"
OTHER_STEPS = "the weights are updated differently from here on"
OTHER_LENGTH = "the length of the run changes, and with it the shape of a decay that depends on it"

ROWS = [
    ResumeRule(
        "free",
        "how the computation is distributed and ordered; the model is the same",
        """
        tensor_model_parallel_size pipeline_model_parallel_size data_parallel_size sequence_parallel
        pipeline_schedule pipeline_schedule_csv num_virtual_stages_per_pipeline_rank
        microbatch_group_size_per_virtual_pipeline_stage decoder_first_pipeline_num_layers
        decoder_last_pipeline_num_layers pipeline_model_parallel_layout use_distributed_optimizer
        optimizer_cpu_offload optimizer_offload_fraction overlap_grad_reduce overlap_param_gather ddp_bucket_size
        recompute_granularity recompute_method recompute_num_layers distributed_backend
        distributed_timeout_minutes micro_batch_size make_vocab_size_divisible_by device compile
        data_prefetch_steps data_cache_path""",
    ),
    ResumeRule(
        "free",
        "what is written, when and where",
        """
        log_interval output_dir tensorboard_dir save save_interval async_save exit_on_save_error
        keep_last_n_checkpoints save_retain_interval keep_best_n_checkpoints load auto_resume trace_schedule
        trace_schedule_step""",
    ),
    ResumeRule("free", "when a run stops early", "exit_interval exit_duration_in_mins stop_file"),
    ResumeRule(
        "free",
        "checks during training, and what a bad step does",
        """
        force_resume check_for_nan_in_loss_and_grad check_for_spiky_loss spiky_loss_factor spiky_loss_window
        on_bad_step max_bad_steps check_replicas_every log_straggler straggler_factor straggler_intervals""",
    ),
    ResumeRule(
        "free", "only the start of a run depends on it", "init_method_std initial_loss_scale"
    ),
    ResumeRule(
        "free",
        "when and how much is validated",
        "eval_interval eval_iters",
        _in_megatrons_order("notice", "validation reads different samples"),
        "a notice with data_order megatron, whose validation sets depend on it",
    ),
    ResumeRule(
        "notice",
        OTHER_STEPS,
        """
        lr min_lr lr_decay_style lr_decay_iters lr_decay_samples lr_warmup_iters lr_warmup_samples
        lr_warmup_fraction lr_warmup_init lr_wsd_decay_style lr_wsd_decay_iters lr_wsd_decay_samples weight_decay
        adam_beta1 adam_beta2 adam_eps clip_grad loss_scale min_loss_scale loss_scale_window hysteresis
        hidden_dropout attention_dropout""",
    ),
    ResumeRule(
        "notice",
        OTHER_LENGTH,
        "train_iters train_samples",
        _in_megatrons_order("refused", OTHER_ORDER),
        "refused with data_order megatron: " + OTHER_ORDER,
    ),
    ResumeRule(
        "notice",
        "the number of samples per step changes; the learning rate is not adjusted",
        "global_batch_size rampup_batch_size",
        _in_megatrons_order("refused", OTHER_ORDER),
        "refused with data_order megatron: " + OTHER_ORDER,
    ),
    ResumeRule(
        "notice",
        "validation losses are measured on different text",
        "valid_data_path test_data_path",
    ),
    ResumeRule(
        "refused",
        OTHER_ORDER,
        "data_path train_data_path",
        _same_text,
        "a notice if the files have the same tokens under another name",
    ),
    ResumeRule(
        "refused",
        OTHER_ORDER,
        "data_stages",
        _only_later_stages,
        "a notice if only stages after the checkpoint's last sample change",
    ),
    ResumeRule("refused", OTHER_ORDER + "; dropout masks change, too", "seed"),
    ResumeRule("refused", OTHER_ORDER, "split mock_data data_order packing seq_length"),
    ResumeRule(
        "refused",
        OTHER_TEXT,
        """
        fim_rate fim_spm_rate fim_prefix_id fim_middle_id fim_suffix_id reset_position_ids reset_attention_mask
        eod_mask_loss""",
    ),
    ResumeRule(
        "refused",
        "ids mean different words",
        "tokenizer_type tokenizer_model",
        _same_ids,
        "free if the ids are the same",
    ),
    ResumeRule(
        "refused",
        OTHER_FUNCTION,
        "rotary_base rotary_percent norm_epsilon squared_relu openai_gelu",
    ),
    ResumeRule(
        "fixed",
        OTHER_TENSORS,
        "max_position_embeddings",
        _without_position_table,
        "free without learned positions",
    ),
    ResumeRule(
        "fixed",
        OTHER_TENSORS,
        """
        num_layers hidden_size num_attention_heads num_query_groups kv_channels ffn_hidden_size
        position_embedding_type normalization swiglu add_bias_linear add_qkv_bias
        untie_embeddings_and_output_weights vocab_size bf16 fp16 fp64""",
    ),
]

ROW_OF: dict[str, ResumeRule] = {name: row for row in ROWS for name in row.names.split()}
CAN_BE_FORCED = [
    *(name for name, row in ROW_OF.items() if row.kind == "refused" or "refused" in row.exception),
    DATA_FILES,
    TOKENIZER,
]


def compare_configs(
    before: Side, now: Side, consumed_samples: int, forced: Sequence[str] = ()
) -> ResumeVerdict:
    """Notices and refusals for all changes between two sides. A setting that the checkpoint lacks is ignored."""
    notices = []
    refusals = []
    for name, kind, sentence in [
        *_settings(before, now, consumed_samples),
        *_files(before, now),
        *_tokenizer(before, now),
    ]:
        if kind == "notice":
            notices.append(sentence)
        elif kind == "refused" and name in forced:
            notices.append(f"forced: {sentence}")
        elif kind == "refused":
            refusals.append(
                f"{sentence}; restore the former value, or resume anyway with --force-resume {name}"
            )
        elif kind == "fixed":
            refusals.append(
                f"{sentence}, and cannot be forced: restore the former value, or start a new run"
            )
    return ResumeVerdict(notices, refusals)


def _settings(before: Side, now: Side, consumed_samples: int) -> list[tuple[str, Kind, str]]:
    """(setting, kind, sentence) for each setting that differs."""
    changes: list[tuple[str, Kind, str]] = []
    for name in now.settings:
        row = ROW_OF[name]
        if name not in before.settings:
            continue
        change = Change(name, before, now, consumed_samples)
        old, new = change.values
        if old == new:
            continue
        exception = row.unless(change) if row.unless else None
        kind, effect = exception or (row.kind, row.effect)
        changes.append(
            (name, kind, f"{flag(name)[2:]} was {_words(old)} and is now {_words(new)}: {effect}")
        )
    return changes


def _files(before: Side, now: Side) -> list[tuple[str, Kind, str]]:
    """Corpora with the same name but different content."""
    changes: list[tuple[str, Kind, str]] = []
    for prefix in before.files:
        if prefix not in now.files:
            continue
        for suffix in differing_files(before.files[prefix], now.files[prefix]):
            old = _digest(before.files[prefix].get(suffix))
            new = _digest(now.files[prefix].get(suffix))
            sentence = (
                f"{prefix}{suffix} has changed since the checkpoint: it was {old} and is now {new}: "
                f"{OTHER_TEXT}, maybe in a different order"
            )
            changes.append((DATA_FILES, "refused", sentence))
    return changes


def _tokenizer(before: Side, now: Side) -> list[tuple[str, Kind, str]]:
    """A tokenizer of the same name whose content has changed."""
    if before.tokenizer is None or now.tokenizer is None or before.tokenizer == now.tokenizer:
        return []
    for name in ("tokenizer_type", "tokenizer_model"):
        if before.settings.get(name) != now.settings.get(name):
            return []  # another tokenizer: its own rule in ROWS reports it
    sentence = (
        f"the tokenizer's digest was {before.tokenizer[:16]} and is now {now.tokenizer[:16]}: "
        "ids mean different words"
    )
    return [(TOKENIZER, "refused", sentence)]


def _digest(file: Mapping[str, Any] | None) -> str:
    if file is None:
        return "missing"
    words = []
    for key, value in file.items():
        if key == "bytes":
            words.append(f"{value:,} bytes")
        else:
            words.append(f"{key} {str(value)[:16]}")
    return ", ".join(words)


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "nothing"
    return "not given" if value is None else str(value)


def rules() -> str:
    """The text of --print-resume-rules: the settings by kind, with the effect of a change."""
    lines = []
    for kind, meaning in KINDS.items():
        lines.append(f"{kind}: {meaning}")
        for row in ROWS:
            if row.kind == kind:
                exception = f" ({row.exception})" if row.exception else ""
                lines += [f"  {row.effect}{exception}", *_wrapped(row.names.split())]
    forced = f"--force-resume also accepts {DATA_FILES} (different content in a file of the same name) and {TOKENIZER}"
    return "\n".join([*lines, forced])


def _wrapped(names: list[str], width: int = 108) -> list[str]:
    lines = [""]
    for name in names:
        if not lines[-1]:
            lines[-1] = name
        elif len(lines[-1]) + len(name) < width:
            lines[-1] += f" {name}"
        else:
            lines.append(name)
    return [f"      {line}" for line in lines]
