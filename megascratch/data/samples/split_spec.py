"""Parses --split (949,50,1) and --data-path (weights and prefixes) into ranges of sequences and blend weights."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from megascratch.config.errors import UserError

SPLITS = ("train", "valid", "test")
DEFAULT_SPLIT = "969,30,1"


def shares(split: str) -> list[float]:
    """The shares of train, valid and test, which add up to 1; missing ones are 0.

    Raises: UserError for anything but one to three numbers with a sum above 0.
    """
    words = re.split(r"\s*[,/]\s*|\s+", split.strip())
    numbers = [float(word) for word in words if re.fullmatch(r"\d+\.?\d*|\.\d+", word)]
    total = sum(numbers)
    if len(numbers) != len(words) or len(numbers) > len(SPLITS) or total <= 0:
        raise UserError(
            f"--split {split!r} must be up to three numbers (train,valid,test) above 0, such as 949,50,1"
        )
    numbers += [0.0] * (len(SPLITS) - len(numbers))
    return [number / total for number in numbers]


def ranges(split: str, sequences: int) -> list[tuple[int, int] | None]:
    """Sequences [first, stop) of train, valid and test; None where the share is 0.

    The borders are the shares' running sums times `sequences`, rounded half to even (Megatron's rule).
    """
    result: list[tuple[int, int] | None] = []
    low = 0.0
    for share in shares(split):
        high = low + share
        if share > 0:
            result.append((round(low * sequences), round(high * sequences)))
        else:
            result.append(None)
        low = high
    return result


def has_too_few_sequences(split: str, sequences: int) -> bool:
    """Whether training or validation gets no whole sequence, though it has a share.

    The test share does not count: nothing reads it unless it is asked for, and what is trained must not depend on that.
    """
    train, valid, _ = ranges(split, sequences)
    return any(limits is not None and limits[0] == limits[1] for limits in (train, valid))


def prefixes_and_weights(words: Sequence[str], flag: str) -> tuple[list[str], list[float] | None]:
    """Prefixes, and weights if `words` is weight prefix weight prefix ... (even length, every other one is a number).

    Raises: UserError for no words, numbers that are neither the weight nor the name of a corpus, and weights that are
    negative or all 0.
    """
    if not words:
        raise UserError(f"{flag} names no corpus; give at least one prefix of a .bin/.idx pair")
    weighted = len(words) % 2 == 0 and all(map(_is_number, words[::2]))
    prefixes = list(words[1::2] if weighted else words)
    if any(_is_number(prefix) and not _is_corpus(prefix) for prefix in prefixes):
        numbers = sum(map(_is_number, words))
        raise UserError(
            f"{flag} {' '.join(words)}: weights: {numbers}, corpora: {len(words) - numbers}; give each corpus a weight "
            f"in front of it (0.3 web 0.7 books), or none of them (web books)"
        )
    if not weighted:
        return prefixes, None
    weights = [float(word) for word in words[::2]]
    valid = all(0 <= weight < float("inf") for weight in weights)
    if not valid or sum(weights) <= 0:
        raise UserError(f"{flag}: weights {weights} must be finite, not negative and not all 0")
    normalized = np.array(weights) / np.sum(weights)  # Megatron's rounding, which blends keep
    return prefixes, normalized.tolist()


def named_prefixes(paths: Iterable[Sequence[str] | None]) -> list[str]:
    """Every corpus on this machine that is named in one of the lists of words, each once; invalid lists are skipped."""
    named: dict[str, None] = {}
    for words in paths:
        if not words:
            continue
        try:
            prefixes, _ = prefixes_and_weights(words, "")
        except UserError:
            continue
        for prefix in prefixes:
            if "://" not in prefix:
                named[prefix] = None
    return list(named)


def _is_corpus(word: str) -> bool:
    """Whether a number is the name of a corpus on this machine, such as 2024."""
    return Path(f"{word}.idx").exists()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
