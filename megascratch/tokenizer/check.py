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
    words = [*{**tokenizer.specials, **tokenizer.special_words}]
    texts, plain, parsed = [], [], []
    for text in map(as_text, [*probe(words), *random_texts(seed, count, words)]):
        try:
            plain.append(tokenizer.encode(text))
            parsed.append(tokenizer.encode(text, parse_specials=True))
            texts.append(text)
        except UserError:
            continue
    engines = _engines(tokenizer, texts, plain, False) or _engines(tokenizer, texts, parsed, True)
    return [
        TokenizerFinding("the fast engine's ids are the reference's", engines, len(texts)),
        TokenizerFinding("decoding gives the text back", _round_trip(tokenizer, texts, plain), len(texts)),
        TokenizerFinding("every id is in the vocabulary", _range(tokenizer, texts, [*plain, *parsed]), len(texts)),
        TokenizerFinding("no text makes an end of document or padding", _no_ends(tokenizer, texts), len(texts)),
        TokenizerFinding(
            "a special token in a text is one id, where it is asked for", _specials(tokenizer), len(words)
        ),
    ]


def _engines(
    tokenizer: Tokenizer, texts: Sequence[str], one_by_one: Sequence[list[int]], parse_specials: bool
) -> str | None:
    ids, lengths = tokenizer.encode_batch(texts, parse_specials)
    parts = np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
    for text, part, wanted in zip(texts, parts, one_by_one, strict=True):
        if part.tolist() != wanted:
            return f"{text!a}: {part.tolist()[:20]} is not {wanted[:20]}"
    return None


def _round_trip(tokenizer: Tokenizer, texts: Sequence[str], plain: Sequence[list[int]]) -> str | None:
    for text, ids in zip(texts, plain, strict=True):
        if (back := tokenizer.decode(ids)) != tokenizer.normalized(text):
            return f"{text!a} comes back as {back!a}"
    return None


def _range(tokenizer: Tokenizer, texts: Sequence[str], one_by_one: Sequence[list[int]]) -> str | None:
    for text, ids in zip([*texts, *texts], one_by_one, strict=True):
        if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
            return f"{text!a} has ids from {min(ids)} to {max(ids)}, the vocabulary 0 to {tokenizer.vocab_size - 1}"
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
