"""Checks a tokenizer on adversarial and random texts: round trip, id range, special tokens, fast engine."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.tokenizer.adversarial_texts import probe, random_texts
from megascratch.tokenizer.interface import Tokenizer, as_text


class TokenizerFinding(NamedTuple):
    """Whether one property of the tokenizer holds."""

    promise: str
    broken: str | None
    """How the property fails, and on which text; None: it holds."""
    texts: int
    """Number of texts it was checked on."""


def check(tokenizer: Tokenizer, count: int, seed: int) -> list[TokenizerFinding]:
    """Checks each property on the adversarial texts and `count` random ones; texts that the vocabulary refuses are left
    out."""
    words = list({**tokenizer.specials, **tokenizer.special_words})
    texts: list[str] = []
    plain: list[list[int]] = []  # the ids of each text
    parsed: list[list[int]] = []  # the same with special tokens parsed
    for text in map(as_text, [*probe(words), *random_texts(seed, count, words)]):
        try:
            ids = tokenizer.encode(text)
            ids_parsed = tokenizer.encode(text, parse_specials=True)
        except UserError:
            continue
        texts.append(text)
        plain.append(ids)
        parsed.append(ids_parsed)
    results = {
        "the fast engine's ids are the reference's": (
            _engines(tokenizer, texts, plain, parse_specials=False)
            or _engines(tokenizer, texts, parsed, parse_specials=True)
        ),
        "decoding gives the text back": _round_trip(tokenizer, texts, plain),
        "every id is in the vocabulary": _range(tokenizer, texts, plain)
        or _range(tokenizer, texts, parsed),
        "no text makes an end of document or padding": _no_ends(tokenizer, texts),
    }
    findings = [
        TokenizerFinding(promise, broken, len(texts)) for promise, broken in results.items()
    ]
    one_id = "a special token in a text is one id, where it is asked for"
    findings.append(TokenizerFinding(one_id, _specials(tokenizer), len(words)))
    return findings


def _engines(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    one_by_one: Sequence[list[int]],
    parse_specials: bool,
) -> str | None:
    ids, lengths = tokenizer.encode_batch(texts, parse_specials)
    stops = np.cumsum(lengths)
    for text, start, stop, wanted in zip(texts, stops - lengths, stops, one_by_one, strict=True):
        found = ids[start:stop].tolist()
        if found != wanted:
            return f"{text!a}: {found[:20]} is not {wanted[:20]}"
    return None


def _round_trip(
    tokenizer: Tokenizer, texts: Sequence[str], plain: Sequence[list[int]]
) -> str | None:
    for text, ids in zip(texts, plain, strict=True):
        back = tokenizer.decode(ids)
        if back != tokenizer.normalized(text):
            return f"{text!a} comes back as {back!a}"
    return None


def _range(
    tokenizer: Tokenizer, texts: Sequence[str], one_by_one: Sequence[list[int]]
) -> str | None:
    for text, ids in zip(texts, one_by_one, strict=True):
        if not ids:
            continue
        lowest = min(ids)
        highest = max(ids)
        if lowest < 0 or highest >= tokenizer.vocab_size:
            return f"{text!a} has ids from {lowest} to {highest}, the vocabulary 0 to {tokenizer.vocab_size - 1}"
    return None


def _no_ends(tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    ends = {tokenizer.eod, tokenizer.pad} - {None}
    for text in texts:
        forged = ends.intersection(tokenizer.encode_bare(text))
        if forged:
            return f"{text!a} holds id {forged.pop()}"
    return None


def _specials(tokenizer: Tokenizer) -> str | None:
    for word, number in tokenizer.specials.items():
        ids = tokenizer.encode_bare(word, parse_specials=True)
        if ids != [number]:
            return f"{word} becomes {ids}, not {number}"
    return None
