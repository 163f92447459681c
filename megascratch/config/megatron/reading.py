"""Reads a command line of Megatron-LM as settings.

`is_megatron_line` decides whether a command line is one, `read_line` reads it, `verdict` says whether every flag of it
is understood.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from megascratch.config.fields import SETTINGS, flag
from megascratch.config.flags import read_flags
from megascratch.config.megatron.blend_files import blends_of_files
from megascratch.config.megatron.command_line import CommandLine, Given, divided
from megascratch.config.megatron.conflicts import contradictions
from megascratch.config.megatron.options import option_of
from megascratch.config.megatron.rules import READ_BY_RULES, RULES, Becomes, told, without_effect
from megascratch.config.values import ReadSettings, Said, read

MOST_NAMED = 4
"""Flags named in one line of a message."""


class Understanding(NamedTuple):
    """Whether a command line is understood."""

    whole: bool
    """Every flag is."""
    missing: dict[str, list[str]]
    """What is not there -> the flags that need it, as they were typed."""
    refused: list[str]
    """One sentence for each flag that is refused for another reason."""
    unknown: list[str]
    """Flags that neither Megatron-LM nor this toolkit knows."""


class Explanation(NamedTuple):
    """What a flag of a command line, or a rule about all of them, means here."""

    flag: str
    """As it was typed; of a rule the reason."""
    kind: str
    """The class of the option (`options.CLASSES`), or `rule` or `unknown`."""
    meaning: str
    """What it becomes: settings, or words."""


def explained(words: Sequence[str]) -> list[Explanation]:
    """What each flag of a command line means here, and what the rules add."""
    line = divided(words)
    ignored = _ignored(line)
    found = []
    for given in line.given.values():
        kind: str = given.option.kind
        if given.option.name in ignored or (kind in ("feature", "out") and given.is_neutral):
            kind = "none"
        elif given.missing:
            kind = "feature"
        found.append(
            Explanation(given.typed, kind, ignored.get(given.option.name) or _meaning(given))
        )
    settings = read_flags(line.ours)
    for name in settings.values:
        found.append(Explanation(flag(name), "same", "a setting of this toolkit"))
    for problem in settings.problems:
        found.append(Explanation(problem.removeprefix("unknown flag "), "unknown", ""))
    for rule in _ruled(line):
        found.append(Explanation(rule.reason, "rule", _spelled(rule.setting, rule.value)))
    return found


def _meaning(given: Given) -> str:
    """What an option becomes, in words."""
    option = given.option
    if given.missing:
        return given.missing
    becomes = []
    for setting, value in option.becomes.items():
        becomes.append(_spelled(setting, " ".join(given.words) if value is None else _yaml(value)))
    return ", ".join(becomes) or option.words


def _spelled(setting: str, value: Any) -> str:
    """`--no-add-bias-linear`, `--log-interval 100`: a setting as a flag."""
    if value is None:
        return f"the default of {flag(setting)}"
    if isinstance(value, bool):
        return flag(setting if value else f"no_{setting}")
    return f"{flag(setting)} {value}".rstrip()


def only_megatrons(words: Sequence[str]) -> list[str]:
    """The flags that only Megatron-LM knows, as they were typed."""
    found = []
    for word in words:
        if not word.startswith("--"):
            continue
        option = option_of(word)
        if option is None:
            continue
        name = option.name.replace("-", "_")
        switches_off = option.becomes == {name.removeprefix("no_"): "false"}
        if name not in SETTINGS and not switches_off:
            found.append(word.split("=", 1)[0])
    return found


def read_line(words: Sequence[str]) -> ReadSettings:
    """The settings of a command line of Megatron-LM, their origins, and all problems."""
    line = divided(words)
    flags = read_flags(_ours(line))
    aliases = read(_aliases(line), SETTINGS)
    ruled = _ruled(line)
    rules = read(_said(ruled), SETTINGS)
    problems = line.problems + _conflicts(line) + contradictions(line.given) + _not_accepted(line)
    problems += blends_of_files(line.given).problems
    found = rules.then(aliases).then(flags)
    for one in ruled:  # a rule about an option that is given beats the value of the option
        if one.setting not in flags.values and one.setting not in aliases.values:
            found.places[one.setting] = f"megatron: {one.reason}"
    return ReadSettings(
        found.values,
        found.places,
        problems + found.problems,
        found.unread,
        [*line.replaced, *_notices(line), *found.notices],
    )


def verdict(words: Sequence[str]) -> Understanding:
    """What of a command line is understood. Values are read, laws between settings are not checked."""
    line = divided(words)
    missing = _missing(line)
    refused = list(line.problems)
    for given in line.given.values():
        if given.option.kind in ("out", "refused") and not given.is_neutral:
            refused.append(f"{given.spelling}: {given.option.words}")
    refused += _conflicts(line) + contradictions(line.given)
    found = read_flags(_ours(line))
    unknown = [problem for problem in found.problems if problem.startswith("unknown flag")]
    refused += [problem for problem in found.problems if problem not in unknown]
    whole = not (missing or refused or unknown)
    return Understanding(whole, missing, refused, unknown)


def _missing(line: CommandLine) -> dict[str, list[str]]:
    """Feature that is not there -> the flags that need it, as they were typed."""
    ignored = _ignored(line)
    missing: dict[str, list[str]] = {}
    for name, given in line.given.items():
        if given.missing and name not in ignored:
            missing.setdefault(given.missing, []).append(given.typed)
    return missing


def _ours(line: CommandLine) -> list[str]:
    """The words that say settings of ours: those of the same name, and flags that Megatron-LM does not know."""
    words = []
    ignored = _ignored(line)
    for name, given in line.given.items():
        is_good = not (given.missing or name in ignored or name in line.wrong)
        if given.option.kind == "same" and is_good:
            words += [f"--{name}", *_joined(given)]
    return words + line.ours


def _ignored(line: CommandLine) -> dict[str, str]:
    """Options that have no effect together with the others -> that, and why."""
    return {name: f"no effect {why}" for name, why in without_effect(line.given).items()}


def _joined(given: Given) -> tuple[str, ...]:
    """The words of an option; one word if its setting is a text, which a shell may have cut at its spaces."""
    name = given.option.name.replace("-", "_")
    is_text = SETTINGS[name].kind is str and len(given.words) > 1
    return (" ".join(given.words),) if is_text else given.words


def _aliases(line: CommandLine) -> Iterable[Said]:
    for given in line.given.values():
        if given.option.kind != "alias":
            continue
        for setting, value in given.option.becomes.items():
            text: Any = _yaml(value) if value is not None else _own_value(given, setting)
            yield Said(setting, f"flag {given.spelling}", given.spelling, text)


def _yaml(text: str) -> Any:
    """`false`, `3` and `0.5` of the table as values."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _own_value(given: Given, setting: str) -> Any:
    """The value of an option, typed as its setting reads it."""
    if SETTINGS[setting].hint is bool:
        return True
    values = [_yaml(word) for word in given.words]
    return values if given.option.values in ("*", "+") else values[0] if values else None


def _ruled(line: CommandLine) -> list[Becomes]:
    return [one for rule in RULES for one in rule(line.given)]


def _said(ruled: Sequence[Becomes]) -> Iterable[Said]:
    for one in ruled:
        yield Said(one.setting, f"megatron: {one.reason}", flag(one.setting), one.value)


def _conflicts(line: CommandLine) -> list[str]:
    """One sentence for each setting to which two flags give different values."""
    said: dict[str, tuple[str, Any]] = {}
    problems = []
    for given in line.given.values():
        for setting, value in _values(given).items():
            before = said.get(setting)
            if before is not None and before[1] != value:
                problems.append(f"{before[0]} and {given.typed} contradict each other: remove one")
            said[setting] = (given.typed, value)
    for setting, value in read_flags(line.ours).values.items():
        if setting in said and said[setting][1] != value:
            ours = _spelled(setting, value)
            problems.append(f"{said[setting][0]} and {ours} contradict each other: remove one")
    return problems


def _values(given: Given) -> Mapping[str, Any]:
    """Setting -> value, as far as an option alone says it."""
    if given.option.kind == "same":
        name = given.option.name.replace("-", "_")
        return {name: _own_value(given, name)}
    if given.option.kind == "alias":
        becomes = given.option.becomes.items()
        return {
            setting: _own_value(given, setting) if value is None else _yaml(value)
            for setting, value in becomes
        }
    return {}


def _not_accepted(line: CommandLine) -> list[str]:
    """One line for each feature that is missing, with its flags, and for each flag that is refused."""
    problems = []
    for given in line.given.values():
        kind = given.option.kind
        if kind == "out" and not given.is_neutral:
            problems.append(f"{given.spelling} belongs to another program: {given.option.words}")
        elif kind == "refused":
            problems.append(f"{given.spelling}: {given.option.words}")
    features = [
        f"{feature}: not there yet (needed by {_some(flags)})"
        for feature, flags in _missing(line).items()
    ]
    return features + problems


def _some(flags: Sequence[str]) -> str:
    """The first flags, and how many more there are."""
    named = ", ".join(flags[:MOST_NAMED])
    more = len(flags) - MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _notices(line: CommandLine) -> list[str]:
    """One sentence for all flags without effect, and one for each that differs."""
    without = []
    differing: dict[str, list[str]] = {}
    ignored = _ignored(line)
    for given in line.given.values():
        kind = given.option.kind
        if given.option.name in ignored:
            differing.setdefault(ignored[given.option.name], []).append(given.typed)
        elif given.option.name in READ_BY_RULES:
            continue
        elif kind in ("none", "always") or (kind in ("feature", "out") and given.is_neutral):
            without.append(given.spelling)
        elif kind == "notice" and not given.is_neutral:
            differing.setdefault(given.option.words, []).append(given.typed)
    notices = [f"{_some(flags)}: {words}" for words, flags in differing.items()]
    if without:
        count = "1 flag has" if len(without) == 1 else f"{len(without)} flags have"
        notices.insert(0, f"{count} no effect here: {_some(without)}")
    return notices + told(line.given, line.ours)
