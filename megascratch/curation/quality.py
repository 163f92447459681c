"""Quality filters for text: the published rules of Gopher and C4, as functions that give a reason to drop it or None.

Gopher: Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 (quality) and table A1 (repetition).
C4: Raffel et al. 2019, arXiv 1910.10683, section 2.2.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
BULLETS = ("•", "‣", "◦", "●", "-", "*", "\u2013")
ELLIPSES = ("...", "…")
SENTENCE_END = re.compile(r"[.!?]+[\"')\]”’]*(?=\s|$)")
TERMINAL = (".", "!", "?", '"', "”")


class Reason(NamedTuple):
    """Why a text is dropped."""

    rule: str
    detail: str


@dataclass(frozen=True)
class Limits:
    """Thresholds of the rules; the defaults are those of the papers."""

    min_words: int = 50  # Gopher
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2
    max_duplicate_lines: float = 0.30  # Gopher, repetition
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_line_characters: float = 0.20
    max_duplicate_paragraph_characters: float = 0.20
    max_top_2_gram: float = 0.20
    max_top_3_gram: float = 0.18
    max_top_4_gram: float = 0.16
    max_duplicate_5_grams: float = 0.15
    max_duplicate_6_grams: float = 0.14
    max_duplicate_7_grams: float = 0.13
    max_duplicate_8_grams: float = 0.12
    max_duplicate_9_grams: float = 0.11
    max_duplicate_10_grams: float = 0.10
    min_sentences: int = 3  # C4
    min_words_per_line: int = 3


def gopher_quality(text: str, limits: Limits) -> Reason | None:
    """Checks length, length of words, symbols, bullets, ellipses, letters and stop words."""
    words = text.split()
    if not max(limits.min_words, 1) <= len(words) <= limits.max_words:
        # without words the shares below are undefined
        return Reason(
            "words", f"{len(words)} words, {limits.min_words} to {limits.max_words} are kept"
        )
    lines = _stripped(text.splitlines())
    alphabetic = sum(any(map(str.isalpha, word)) for word in words) / len(words)
    stop_words = sum(word.lower().strip(".,;:!?\"'()") in STOP_WORDS for word in words)
    mean = sum(map(len, words)) / len(words)
    ellipsis_symbols = sum(map(text.count, ELLIPSES))
    symbols = max(text.count("#"), ellipsis_symbols) / len(words)
    bullets = sum(line.startswith(BULLETS) for line in lines) / len(lines)
    ellipses = sum(line.endswith(ELLIPSES) for line in lines) / len(lines)
    return _first(
        _below("mean_word_length", mean, limits.min_mean_word_length),
        _above("mean_word_length", mean, limits.max_mean_word_length),
        _above("symbols_per_word", symbols, limits.max_symbols_per_word),
        _above("bullet_lines", bullets, limits.max_bullet_lines),
        _above("ellipsis_lines", ellipses, limits.max_ellipsis_lines),
        _below("alphabetic_words", alphabetic, limits.min_alphabetic_words),
        _below("stop_words", stop_words, limits.min_stop_words),
    )


def gopher_repetition(text: str, limits: Limits) -> Reason | None:
    """Checks for repeated lines, paragraphs and n-grams: their shares of the lines, of the characters, of the words'
    characters.

    All occurrences of a duplicate but the first count; characters of overlapping n-grams count once.
    """
    lines, line_characters = _duplicates(_stripped(text.splitlines()))
    paragraphs, paragraph_characters = _duplicates(_stripped(re.split(r"\n\s*\n", text)))
    shares = {
        "duplicate_lines": lines,
        "duplicate_line_characters": line_characters,
        "duplicate_paragraphs": paragraphs,
        "duplicate_paragraph_characters": paragraph_characters,
    }
    words = text.split()
    for n in (2, 3, 4):
        shares[f"top_{n}_gram"] = _top(words, n)
    for n in range(5, 11):
        shares[f"duplicate_{n}_grams"] = _repeated(words, n)
    reasons = []
    for rule, share in shares.items():
        reasons.append(_above(rule, share, getattr(limits, f"max_{rule}")))
    return _first(*reasons)


def c4(text: str, limits: Limits) -> str | Reason:
    """Keeps the lines that C4 keeps (they end a sentence, have enough words, do not mention Javascript), or drops the
    text with a reason."""
    if "lorem ipsum" in text.lower():
        return Reason("lorem_ipsum", "the text says lorem ipsum")
    if "{" in text:
        return Reason("curly_bracket", "the text has a curly bracket: code")
    lines = []
    for line in map(str.strip, text.splitlines()):
        ends_a_sentence = line.endswith(TERMINAL) and not line.endswith(ELLIPSES)
        has_enough_words = len(line.split()) >= limits.min_words_per_line
        if ends_a_sentence and has_enough_words and "javascript" not in line.lower():
            lines.append(line)
    sentences = sum(len(SENTENCE_END.findall(line)) for line in lines)
    if sentences < limits.min_sentences:
        return Reason(
            "sentences",
            f"{sentences} in lines that end one, at least {limits.min_sentences} are needed",
        )
    return "\n".join(lines)


def _stripped(parts: Sequence[str]) -> list[str]:
    """The parts without white space around them; empty ones are left out."""
    return [part.strip() for part in parts if part.strip()]


def _first(*reasons: Reason | None) -> Reason | None:
    return next((reason for reason in reasons if reason), None)


def _above(rule: str, value: float, limit: float) -> Reason | None:
    return Reason(rule, f"{value:.3g} is above {limit:g}") if value > limit else None


def _below(rule: str, value: float, limit: float) -> Reason | None:
    return Reason(rule, f"{value:.3g} is below {limit:g}") if value < limit else None


def _duplicates(parts: Sequence[str]) -> tuple[float, float]:
    """Share of the parts, and of the characters, that are repetitions of an earlier part."""
    seen: set[str] = set()
    repeated = []
    for part in parts:
        if part in seen:
            repeated.append(part)
        seen.add(part)
    characters = sum(map(len, parts))
    repeated_characters = sum(map(len, repeated))
    return len(repeated) / max(len(parts), 1), repeated_characters / max(characters, 1)


def _top(words: Sequence[str], n: int) -> float:
    """Share of the characters in the most frequent n-gram; 0 if none occurs twice."""
    grams = Counter(_n_grams(words, n))
    if not grams:
        return 0.0
    gram, times = min(grams.items(), key=lambda item: (-item[1], item[0]))
    if times == 1:
        return 0.0
    return times * sum(map(len, gram)) / sum(map(len, words))


def _repeated(words: Sequence[str], n: int) -> float:
    """Share of the characters inside n-grams that occurred before."""
    seen: set[tuple[str, ...]] = set()
    inside = [False] * len(words)
    for at, gram in enumerate(_n_grams(words, n)):
        if gram in seen:
            inside[at : at + n] = [True] * n
        seen.add(gram)
    repeated_characters = sum(map(len, itertools.compress(words, inside)))
    return repeated_characters / max(sum(map(len, words)), 1)


def _n_grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n words."""
    return zip(*(words[start:] for start in range(n)), strict=False)
