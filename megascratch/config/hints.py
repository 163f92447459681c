"""What a name of another tool, or a misspelt one, means here: the hint behind an unknown flag or YAML key.

A name that is in the table of `synonyms.py`, or in that of Megatron-LM's options (`megatron/flags.csv`), never gets a
hint by similarity, and similarity counts word by word: `num_workers` is not a misspelt `num_layers`.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher

from megascratch.config.megatron.options import Option, option_of
from megascratch.config.synonyms import PREFIXES, SYNONYMS, WHOLE, Hint

SIMILAR = 0.8  # of a whole name
SIMILAR_WORD = 0.74  # of each word of it: `sise` and `size`, not `workers` and `layers`
SIMILAR_JOINED = 0.93  # of names with another number of words: `numlayers` and `num_layers`


def plain_name(word: str) -> str:
    """`--Model.num-layers`, `+model/num_layers` -> `num_layers`: a name as the table has it."""
    last = word.lstrip("-+~–—").split(":")[0].replace("/", ".").split(".")[-1]
    return last.replace("-", "_").lower()


def row_of(word: str) -> Hint | None:
    """The row of the tables for a name of another tool; None if it is in none."""
    name = plain_name(word)
    for table in (SYNONYMS, WHOLE):
        if name in table:
            return table[name]
    of_prefix = next((row for prefix, row in PREFIXES.items() if name.startswith(prefix)), None)
    option = option_of(name)
    if option is None or (of_prefix is not None and of_prefix.setting):
        return of_prefix
    return _hint_of(option)


def _hint_of(option: Option) -> Hint | None:
    """What there is to say of an option of Megatron-LM where its flags are not read as its; None for a setting."""
    if option.kind == "same":
        return None
    if len(option.becomes) == 1:
        ((setting, value),) = option.becomes.items()
        return Hint(setting, value or "")
    said = {
        "none": f"not needed, remove it: {option.words}",
        "always": f"not needed, remove it: {option.words}",
        "feature": f"{option.words}: not there yet (docs/limits.md)",
        "notice": f"not a setting here: {option.words}",
        "out": f"belongs to another program: {option.words}",
    }
    return Hint(words=said.get(option.kind, option.words))


def meant(word: str, known: Iterable[str]) -> str:
    """The setting that an unknown name probably means; '' if none."""
    names = list(known)
    name = plain_name(word)
    if name in names:
        return name
    row = row_of(word)
    if row is not None:
        return row.setting
    return most_similar(name.removeprefix("no_"), names)


def hint(word: str, known: Iterable[str], as_flag: bool) -> str:
    """What to say behind an unknown name: ' - did you mean lr?', ': FP8 is not there yet (...)', or ''.

    Args:
        known: the settings, as field names.
        as_flag: write settings as flags, else as YAML keys.
    """
    names = list(known)
    row = row_of(word)
    if row is None or plain_name(word) in names:
        setting = meant(word, names)
        negated = plain_name(word).startswith("no_")
        same = Hint(setting, "false" if negated else "")
        return f" - did you mean {_spelled(same, as_flag)}?" if setting else ""
    if not row.setting:
        return f": {row.words}"
    words = f" ({row.words})" if row.words else ""
    return f" - did you mean {_spelled(row, as_flag)}?{words}"


def _spelled(row: Hint, as_flag: bool) -> str:
    """`--no-add-bias-linear`, `--position-embedding-type rope`, `add_bias_linear: false`."""
    name = row.setting
    if not as_flag and name != "config":
        return f"{name}: {row.value}" if row.value else name
    flag = "--" + name.replace("_", "-")
    if row.value == "true":
        return flag
    if row.value == "false":
        return f"--no-{flag[2:]}"
    return f"{flag} {row.value}".rstrip()


def nearest(word: str, known: Iterable[str]) -> str:
    """' - did you mean X?' with the known word most similar to a misspelt one; '' if none is similar."""
    similar = most_similar(word, known)
    return f" - did you mean {similar}?" if similar else ""


def most_similar(word: str, known: Iterable[str]) -> str:
    """The known word that a misspelt one probably is; '' if none is similar."""
    scored = [(_similarity(word, other), other) for other in known]
    best = max(scored, default=(0.0, ""))
    equals = [other for score, other in scored if score == best[0]]
    return best[1] if best[0] >= SIMILAR and len(equals) == 1 else ""


def _similarity(one: str, other: str) -> float:
    """From 0 to 1; 0 if a word of the one is another word than its counterpart."""
    words = one.lower().replace("-", "_").split("_")
    others = other.lower().replace("-", "_").split("_")
    if len(words) == len(others):
        if any(_ratio(*pair) < SIMILAR_WORD for pair in zip(words, others, strict=True)):
            return 0.0
        return _ratio("_".join(words), "_".join(others))
    if len(words) > 1 and any(others[:at] + others[at + 1 :] == words for at in range(len(others))):
        return SIMILAR  # a word is missing
    # a separator too many or too few
    joined = _ratio("".join(words), "".join(others))
    return joined if joined >= SIMILAR_JOINED else 0.0


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
