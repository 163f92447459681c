"""Tokenizers without merges: one id per character, per byte, or per number in a text that holds ids already.

None of them has special tokens that a text could spell; every number in a NullTokenizer's text is an id.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from megascratch.config.errors import UserError
from megascratch.tokenizer.interface import (
    EncodedText,
    Tokenizer,
    as_text,
    fingerprint,
    joined,
    require_ids,
)
from megascratch.tokenizer.vocabulary import read_json


class CharTokenizer(Tokenizer):
    """One id per character: its place among the sorted characters of the training text; `eod` adds one more id.

    Its file is JSON: {"tokenizer": "CharTokenizer", "eod": true, "characters": "\\n !..."}.
    """

    kind = "CharTokenizer"

    def __init__(self, characters: str, eod: bool):
        if list(characters) != sorted(set(characters)) or not characters:
            raise UserError(
                "a CharTokenizer's characters must be sorted, all different, and at least one"
            )
        self.characters = characters
        self.vocab_size = len(characters) + eod
        self.eod = len(characters) if eod else None
        self.fingerprint = fingerprint(self.kind, characters.encode(), bytes([eod]))
        self._ids = {character: number for number, character in enumerate(characters)}

    @classmethod
    def train(cls, texts: Iterable[str], eod: bool) -> "CharTokenizer":
        """A tokenizer with every character of the texts."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        if not characters:
            raise UserError(
                "the training text is empty; a CharTokenizer needs at least one character"
            )
        return cls("".join(sorted(characters)), eod)

    @classmethod
    def load(cls, path: Path) -> "CharTokenizer":
        """Reads a file that `dump` wrote."""
        record = read_json(path, cls.kind)
        if not isinstance(record, dict) or record.get("tokenizer") != cls.kind:
            raise UserError(
                f'{path} is not a CharTokenizer: its JSON does not say "tokenizer": "{cls.kind}"'
            )
        characters = record.get("characters")
        eod = record.get("eod")
        if not isinstance(characters, str) or not isinstance(eod, bool):
            raise UserError(
                f'{path} is damaged: a CharTokenizer has "characters" (a text) and "eod" (true or false)'
            )
        return cls(characters, eod)

    def dump(self) -> bytes:
        """The content of the file."""
        record = {
            "tokenizer": self.kind,
            "eod": self.eod is not None,
            "characters": self.characters,
        }
        return (json.dumps(record, indent=1) + "\n").encode()

    def encode_bare(
        self, text: str, parse_specials: bool = False, continues: bool = False
    ) -> list[int]:
        """One id per character. Raises: UserError naming the first unknown character."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise UserError(
                f"character {character!r} (U+{ord(character):04X}) at place {text.index(character)} is not among the "
                f"{len(self.characters)} characters of this CharTokenizer; train it on a text that has it"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Raises: UserError for an id outside the vocabulary."""
        require_ids(ids, self.vocab_size, self.kind)
        return "".join(self.characters[number] for number in ids if number != self.eod)


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of the UTF-8 text, 256 is the end of a document. No file."""

    kind = "ByteTokenizer"
    vocab_size = 257
    eod = 256
    fingerprint = fingerprint(kind)

    def encode_bare(
        self, text: str, parse_specials: bool = False, continues: bool = False
    ) -> list[int]:
        """One id per byte."""
        return list(as_text(text).encode())

    def encode_batch(
        self, texts: Sequence[str | bytes], parse_specials: bool = False, around: bool = True
    ) -> EncodedText:
        """One id per byte, for many texts."""
        ids = []
        for text in texts:
            raw = np.frombuffer(as_text(text).encode(), dtype=np.uint8)
            ids.append(raw.astype(np.int32))
        return joined(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes; those that are not UTF-8 (a text cut inside a character) become U+FFFD."""
        require_ids(ids, self.vocab_size, self.kind)
        return bytes(number for number in ids if number != self.eod).decode(errors="replace")


class NullTokenizer(Tokenizer):
    """Reads a text that holds ids, separated by white space. `eod` ends a document; None: the last id. No file."""

    kind = "NullTokenizer"

    def __init__(self, vocab_size: int, eod: int | None = None):
        if vocab_size < 1:
            raise UserError(f"--vocab-size ({vocab_size}) must be at least 1")
        if eod is not None and not 0 <= eod < vocab_size:
            raise UserError(
                f"--null-tokenizer-eod-id ({eod}) must be an id of the vocabulary: use 0 to {vocab_size - 1}"
            )
        self.vocab_size = vocab_size
        self.eod = vocab_size - 1 if eod is None else eod
        parts = [str(vocab_size).encode()]
        if self.eod != vocab_size - 1:
            parts.append(str(self.eod).encode())
        self.fingerprint = fingerprint(self.kind, *parts)

    def encode_bare(
        self, text: str, parse_specials: bool = False, continues: bool = False
    ) -> list[int]:
        """The numbers in the text. Raises: UserError for a word that is not a number, or outside the vocabulary."""
        try:
            ids = [int(word) for word in text.split()]
        except ValueError as error:
            raise UserError(
                f"a NullTokenizer reads integers separated by white space: {error}"
            ) from error
        require_ids(ids, self.vocab_size, self.kind)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The numbers with one space between them."""
        require_ids(ids, self.vocab_size, self.kind)
        return " ".join(str(number) for number in ids if number != self.eod)
