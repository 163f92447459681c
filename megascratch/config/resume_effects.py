"""What a changed setting means for a run that resumes: the rules that the declaration of a setting names.

*free*: a change affects no result. *notice*: a change is allowed and reported. *refused*: a change needs the setting's
name in `force_resume`. *fixed*: a change cannot be forced, since the checkpoint's tensors would not fit. If the kind of
a change depends on other settings, the rule has a function for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["free", "notice", "refused", "fixed"]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """The settings, data files and tokenizer of a run, either from the checkpoint or as they are now."""

    settings: Settings
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Prefix of each corpus -> its digests by file (`data.tokens.fingerprint`)."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer; None: unknown."""
    imports: Mapping[str, str] = field(default_factory=dict)
    """Users' own code: source, or 'norm NAME' -> its digest (`config.imports.import_digests`)."""


class Change(NamedTuple):
    """A setting on both sides, and what the effect of a change may depend on."""

    name: str
    before: Side
    now: Side
    consumed_samples: int

    @property
    def values(self) -> tuple[Any, Any]:
        return self.before.settings[self.name], self.now.settings[self.name]


Judged = tuple[Kind, str]
"""The kind of a change and its effect."""


class ResumeRule(NamedTuple):
    """What a resume does with a changed setting."""

    kind: Kind
    effect: str
    """The effect of a change."""
    unless: Callable[[Change], Judged | None] | None = None
    """Returns another kind and effect if the other settings call for it."""
    exception: str = ""
    """Describes `unless`."""

    @property
    def can_refuse(self) -> bool:
        """Whether `force_resume` can be needed."""
        return self.kind == "refused" or self.exception.startswith("refused")


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


def _without_trained_padding(change: Change) -> Judged | None:
    sides = change.before.settings, change.now.settings
    if all(side.get("padded_vocab_in_softmax") for side in sides):
        return None
    return "free", "padding rows take no part in the softmax"


def _mean_of_means(change: Change) -> Judged | None:
    """A notice if the mean is taken over micro-batches: then their size decides what a masked token counts."""
    if change.now.settings["calculate_per_token_loss"]:
        return None
    return "notice", "the means of other micro-batches are averaged from here on"


OTHER_ORDER = "the order of the samples changes: some would be read twice, some never"
OTHER_TEXT = "the model reads different text"
OTHER_TENSORS = "the model has different tensors"

FREE_LAYOUT = ResumeRule(
    "free", "how the computation is distributed and ordered; the model is the same"
)
FREE_MICRO_BATCH = ResumeRule(
    FREE_LAYOUT.kind,
    FREE_LAYOUT.effect,
    _mean_of_means,
    "a notice without calculate_per_token_loss: the means of micro-batches are averaged then",
)
FREE_OUTPUT = ResumeRule("free", "what is written, when and where")
FREE_STOP = ResumeRule("free", "when a run stops early")
FREE_CHECKS = ResumeRule("free", "checks during training, and what a bad step does")
FREE_IMPORTS = ResumeRule(
    "free", "where the code of parts of your own is; its content is compared on its own"
)
FREE_START = ResumeRule("free", "only the start of a run depends on it")
FREE_VALIDATION = ResumeRule(
    "free",
    "when and how much is validated",
    _in_megatrons_order("notice", "validation reads different samples"),
    "a notice with data_order megatron, whose validation sets depend on it",
)
NOTICE_STEPS = ResumeRule("notice", "the weights are updated differently from here on")
NOTICE_LENGTH = ResumeRule(
    "notice",
    "the length of the run changes, and with it the shape of a decay that depends on it",
    _in_megatrons_order("refused", OTHER_ORDER),
    "refused with data_order megatron: " + OTHER_ORDER,
)
NOTICE_BATCH = ResumeRule(
    "notice",
    "the number of samples per step changes; the learning rate is not adjusted",
    _in_megatrons_order("refused", OTHER_ORDER),
    "refused with data_order megatron: " + OTHER_ORDER,
)
NOTICE_VALIDATION_TEXT = ResumeRule("notice", "validation losses are measured on different text")
REFUSED_CORPUS = ResumeRule(
    "refused",
    OTHER_ORDER,
    _same_text,
    "a notice if the files have the same tokens under another name",
)
REFUSED_STAGES = ResumeRule(
    "refused",
    OTHER_ORDER,
    _only_later_stages,
    "a notice if only stages after the checkpoint's last sample change",
)
REFUSED_SEED = ResumeRule("refused", OTHER_ORDER + "; dropout masks change, too")
REFUSED_ORDER = ResumeRule("refused", OTHER_ORDER)
REFUSED_TEXT = ResumeRule("refused", OTHER_TEXT)
REFUSED_TOKENIZER = ResumeRule(
    "refused", "ids mean different words", _same_ids, "free if the ids are the same"
)
REFUSED_FUNCTION = ResumeRule("refused", "the same weights compute a different function")
FIXED_POSITIONS = ResumeRule(
    "fixed", OTHER_TENSORS, _without_position_table, "free without learned positions"
)
FIXED_PADDING = ResumeRule(
    "fixed", OTHER_TENSORS, _without_trained_padding, "free without padded-vocab-in-softmax"
)
FIXED_TENSORS = ResumeRule("fixed", OTHER_TENSORS)
FIXED_OPTIMIZER = ResumeRule("fixed", "the optimizer has different state")
ABOUT_WEIGHTS = (FIXED_TENSORS, FIXED_POSITIONS, REFUSED_FUNCTION, REFUSED_TOKENIZER)
"""Rules of the settings that say what weights mean: a new run that begins with them is compared by these alone."""
