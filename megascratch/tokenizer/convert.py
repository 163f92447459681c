"""Converts a vocabulary between tokenizer.json, tiktoken ranks and SentencePiece, only where that is exact.

The result is compared on adversarial and random texts, and nothing is written if an id differs.
"""

from pathlib import Path

import numpy as np

from megascratch.config.errors import UserError
from megascratch.tokenizer import registry
from megascratch.tokenizer.adversarial_texts import probe, random_texts
from megascratch.tokenizer.fast_engine import Encode, first_difference
from megascratch.tokenizer.hugging_face import HuggingFaceTokenizer
from megascratch.tokenizer.interface import Tokenizer, as_text
from megascratch.tokenizer.sentence_piece import SPACE, SentencePieceTokenizer
from megascratch.tokenizer.splits import ENCODINGS, FILE_NAMES, SPLITS, Encoding
from megascratch.tokenizer.vocabulary import (
    END_OF_TEXT,
    from_ranks,
    from_record,
    read_ranks,
    write_ranks,
)

TRIED = 2000  # random texts in the comparison


def convert(
    source: Path,
    output: Path,
    encoding: str | None = None,
    split: str | None = None,
    specials: tuple[str, ...] = (),
) -> Tokenizer:
    """Writes `output` (.json: a tokenizer.json; .tiktoken: ranks) and returns the tokenizer it holds.

    Args:
        encoding: name of a published encoding, which gives what a rank file lacks (the split, the special tokens).
        split, specials: the same, given separately; the ids of the special tokens follow the last rank.

    Raises: UserError where the other format cannot express the vocabulary, or an id would differ.
    """
    if output.suffix not in (".json", ".tiktoken"):
        raise UserError(
            f"--output {output} must end in .json (a tokenizer.json) or .tiktoken (ranks)"
        )
    if registry.kind_of(source) == "TikTokenizer":
        ranks = read_ranks(source)
        split_and_specials = _encoding(source, encoding, split, specials, max(ranks.values()) + 1)
        old: Tokenizer = HuggingFaceTokenizer(
            from_ranks(ranks, split_and_specials, str(source)).record(), str(source)
        )
    elif encoding or split or specials:
        raise UserError(
            f"{source} already defines its split; --encoding, --split and --special-tokens are for rank files"
        )
    else:
        old = registry.load(None, source)
    if isinstance(old, SentencePieceTokenizer):
        record = old.record(parse_specials=True)
    else:
        record = getattr(old, "record", None)
    if record is None:
        raise UserError(
            f"{source} is a {old.kind} that no other format can express: only byte-level BPE, and SentencePiece "
            "BPE with byte fallback and without normalisation, can be converted"
        )
    new = HuggingFaceTokenizer(record, str(output))
    content = registry.dump(record)
    if output.suffix == ".tiktoken":
        vocabulary = from_record(record, str(source))
        split_and_specials = Encoding(vocabulary.split, vocabulary.specials, vocabulary.normal_form)
        new = HuggingFaceTokenizer(
            from_ranks(vocabulary.tokens, split_and_specials, str(source)).record(), str(output)
        )
        content = write_ranks(vocabulary)
    _require_same(old, new, source, output)
    registry.write(output, content)
    return new


def _encoding(
    source: Path, name: str | None, split: str | None, specials: tuple[str, ...], free: int
) -> Encoding:
    if split is not None:
        if name is not None or split not in SPLITS:
            raise UserError(
                f"--split {split}: give either --encoding or --split, one of {', '.join(SPLITS)}"
            )
        return Encoding(
            split, {word: id for id, word in enumerate(specials or (END_OF_TEXT,), free)}
        )
    name = name or FILE_NAMES.get(source.name)
    if name not in ENCODINGS:
        raise UserError(
            f"{source} does not say how text is split: give --encoding ({', '.join(ENCODINGS)}), or "
            f"--split ({', '.join(SPLITS)}) with --special-tokens"
        )
    return ENCODINGS[name]


def _require_same(old: Tokenizer, new: HuggingFaceTokenizer, source: Path, output: Path) -> None:
    """Compares the ids of both, also on texts with special tokens (parsed, or as plain text) and with U+2581, which is
    SentencePiece's space. Raises: UserError with the first text on which they differ."""
    special = {**old.specials, **old.special_words, **new.specials, **new.special_words}
    words = [SPACE, f" {SPACE} ", *special]
    texts = list(map(as_text, [*probe(words), *random_texts(0, TRIED, words)]))
    for parse_specials in (False, True):
        different = first_difference(_ids(old, parse_specials), _ids(new, parse_specials), texts)
        if different is not None:
            raise UserError(
                f"{source} cannot become {output}: the ids would differ on {different[:80]!a}; nothing written"
            )


def _ids(tokenizer: Tokenizer, parse_specials: bool) -> Encode:
    """Encodes with the reference library: the fast engine is checked against it."""

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text, parse_specials))

    return encode
