"""Each published rule drops what the paper says it drops, and plain prose passes them all."""

from dataclasses import replace

import pytest

from megascratch.curation.quality import (
    STOP_WORDS,
    Limits,
    Reason,
    c4,
    gopher_quality,
    gopher_repetition,
)
from tests.support.prose import PROSE

LIMITS = Limits()


def without_stop_words(text):
    return " ".join(word for word in text.split() if word.lower() not in STOP_WORDS)


def test_prose_passes_every_rule():
    assert gopher_quality(PROSE, LIMITS) is None and gopher_repetition(PROSE, LIMITS) is None
    assert c4(PROSE, LIMITS).count("\n") == 3  # four of its lines end a sentence


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("words", "too short"),
        ("words", ""),
        ("words", "the and " * 60_000),
        ("mean_word_length", "a b c d the of and " * 20),
        ("mean_word_length", "internationalisation the and extraordinarily " * 20),
        ("symbols_per_word", PROSE + " #" * 20),
        ("symbols_per_word", PROSE + " ..." * 20),
        (
            "bullet_lines",
            "\n".join(
                f"- the {word} together with something of interest" for word in PROSE.split()
            ),
        ),
        (
            "ellipsis_lines",
            "\n".join(
                f"the {word} and so on and on of it with that something else again and words ..."
                for word in PROSE.split()[:20]
            ),
        ),
        ("alphabetic_words", PROSE + " 1234" * 60),
        ("stop_words", without_stop_words(PROSE)),
    ],
)
def test_each_quality_rule_of_gopher(rule, text):
    assert gopher_quality(text, LIMITS)[0] == rule


def many(count):
    """Different words."""
    return [f"word{number}" for number in range(count)]


PHRASE = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("duplicate_lines", "\n".join(["x"] * 5 + [" ".join(many(100))])),
        ("duplicate_line_characters", "\n".join(many(10) + [" ".join(PHRASE)] * 2)),
        ("duplicate_paragraphs", "\n\n".join([*many(9), *["x"] * 9])),
        ("top_2_gram", " ".join(many(20)) + " big cat" * 6),
        ("top_3_gram", " ".join(f"w{n} x{n} one two three" for n in range(9))),
        ("duplicate_10_grams", " ".join([*PHRASE, *many(40), *PHRASE])),
    ],
)
def test_repetition_rules_of_gopher(rule, text):
    """With the earlier rules out of the way."""
    off = {name: 1.0 for name in vars(LIMITS) if name.startswith(("max_dup", "max_top"))}
    kept = Limits(**off | {f"max_{rule}": getattr(LIMITS, f"max_{rule}")})
    found = gopher_repetition(text, kept)
    assert found and found.rule == rule
    assert gopher_repetition(text, Limits(**off)) is None


def test_overlapping_n_grams_count_their_characters_once():
    """Ten words occur twice: the second ten of 30 words of one length are inside repeated 5-grams."""
    words = [f"w{number:02}" for number in range(20)]
    limits = Limits(max_top_3_gram=1, max_top_4_gram=1, max_duplicate_5_grams=0.33)
    found = gopher_repetition(" ".join([*words, *words[:10]]), limits)
    assert found == Reason("duplicate_5_grams", "0.333 is above 0.33")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is here! Is three here?", "One is here. Two is here! Is three here?"),
        (
            "Menu\nOne is here. Two is.\nToo short.\nThree of them.\nPlease enable Javascript now.\nEnds so ...",
            "One is here. Two is.\nThree of them.",
        ),
        (
            "One is here. Two is here.",
            Reason("sentences", "2 in lines that end one, at least 3 are needed"),
        ),
        ("A. B. C. if (x) { y }", Reason("curly_bracket", "the text has a curly bracket: code")),
        ("Lorem Ipsum dolor. A. B. C.", Reason("lorem_ipsum", "the text says lorem ipsum")),
    ],
)
def test_c4_keeps_lines_that_end_a_sentence(text, expected):
    assert c4(text, LIMITS) == expected


def test_the_first_of_equal_lines_and_what_occurs_once_count_nothing():
    """Three of ten lines are too many only if the first one counts, too."""
    lines = [
        "alphabet",
        "a",
        "bicycles",
        "a",
        "cathedral",
        "a",
        "dangerous",
        "a",
        "elephants",
        "furniture",
    ]
    assert gopher_repetition("\n".join(lines), LIMITS) is None
    assert gopher_repetition("four wholly different words", LIMITS) is None


def test_a_text_without_words_is_dropped_whatever_the_limit():
    """There are no shares of nothing."""
    assert gopher_quality(" \n ", replace(LIMITS, min_words=0)).rule == "words"
