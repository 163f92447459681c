"""Decides which changes of settings are reported or refused when a run resumes from a checkpoint.

What a change means is in the setting's declaration, by one of the rules of `resume_effects.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from textwrap import wrap
from typing import Any, NamedTuple

from megascratch.config.declare import Setting
from megascratch.config.fields import SETTINGS, flag
from megascratch.config.resume_effects import (
    OTHER_TEXT,
    REFUSED_TOKENIZER,
    Change,
    Kind,
    ResumeRule,
    Side,
    differing_files,
)

DATA_FILES = "data_files"
TOKENIZER = "tokenizer"
"""Names that can be forced in addition to those of settings."""

KINDS: dict[Kind, str] = {
    "free": "may change: no result depends on it",
    "notice": "may change; the run reports it",
    "refused": "is refused unless --force-resume names it",
    "fixed": "is refused and cannot be forced: the checkpoint's tensors would not fit",
}


class ResumeVerdict(NamedTuple):
    """What a resume reports and what it refuses, one sentence per change."""

    notices: list[str]
    refusals: list[str]


CAN_BE_FORCED = [
    *(name for name, one in SETTINGS.items() if one.on_resume and one.on_resume.can_refuse),
    DATA_FILES,
    TOKENIZER,
]


def compare_configs(
    before: Side,
    now: Side,
    consumed_samples: int,
    forced: Sequence[str] = (),
    settings: Mapping[str, Setting] = SETTINGS,
) -> ResumeVerdict:
    """Notices and refusals for all changes between two sides. A setting that the checkpoint lacks is ignored.

    Args:
        settings: those that are compared.
    """
    notices = []
    refusals = []
    for name, kind, sentence in [
        *_settings(before, now, consumed_samples, settings),
        *_files(before, now),
        *_tokenizer(before, now),
        *_imports(before, now),
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


def _settings(
    before: Side, now: Side, consumed_samples: int, settings: Mapping[str, Setting]
) -> list[tuple[str, Kind, str]]:
    """(setting, kind, sentence) for each setting that differs."""
    changes: list[tuple[str, Kind, str]] = []
    for name in now.settings:
        rule = settings[name].on_resume if name in settings else None
        if rule is None or name not in before.settings:
            continue
        change = Change(name, before, now, consumed_samples)
        old, new = change.values
        if old == new:
            continue
        exception = rule.unless(change) if rule.unless else None
        kind, effect = exception or (rule.kind, rule.effect)
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
    for name, setting in SETTINGS.items():
        if setting.on_resume is not REFUSED_TOKENIZER or name not in before.settings:
            continue
        if before.settings[name] != now.settings.get(name):
            return []  # another tokenizer: the rule of that setting reports it
    sentence = (
        f"the tokenizer's digest was {before.tokenizer[:16]} and is now {now.tokenizer[:16]}: "
        "ids mean different words"
    )
    return [(TOKENIZER, "refused", sentence)]


def _imports(before: Side, now: Side) -> list[tuple[str, Kind, str]]:
    """Imported code whose content has changed; a file that moved is recognised by its name."""
    was = {PurePath(source).name: digest for source, digest in before.imports.items()}
    changes: list[tuple[str, Kind, str]] = []
    for source, digest in now.imports.items():
        old = was.get(PurePath(source).name, digest)
        if old != digest:
            sentence = (
                f"--import {source} has changed since the checkpoint: it was {old} and is now {digest}: what it "
                "registers may compute something else"
            )
            changes.append(("imports", "notice", sentence))
    return changes


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


def rules(settings: Mapping[str, Setting] = SETTINGS) -> str:
    """The text of --print-resume-rules: the settings by kind, with the effect of a change."""
    names: dict[ResumeRule, list[str]] = {}
    for name, setting in settings.items():
        if setting.on_resume is not None:
            names.setdefault(setting.on_resume, []).append(name)
    lines = []
    indent = " " * 6
    for kind, meaning in KINDS.items():
        lines.append(f"{kind}: {meaning}")
        for rule in names:
            if rule.kind == kind:
                exception = f" ({rule.exception})" if rule.exception else ""
                lines.append(f"  {rule.effect}{exception}")
                lines += wrap(
                    " ".join(names[rule]), 114, initial_indent=indent, subsequent_indent=indent
                )
    forced = f"--force-resume also accepts {DATA_FILES} (different content in a file of the same name) and {TOKENIZER}"
    return "\n".join([*lines, forced])
