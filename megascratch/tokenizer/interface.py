"""What every tokenizer gives: text in, ids out, and back. The kinds differ in where their vocabulary comes from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from megascratch.config.errors import UserError


class EncodedText(NamedTuple):
    """Many texts as ids."""

    ids: np.ndarray
    """[sum of lengths] int32: the ids of all texts back to back."""
    lengths: np.ndarray
    """[texts] int64: ids of each text."""


class Tokenizer(ABC):
    """Text to ids and back; equal fingerprints give equal ids for every text."""

    kind: str
    """Its name in `--tokenizer-type`."""
    vocab_size: int
    """Ids are 0 ... vocab_size - 1."""
    eod: int | None = None
    """Id of the end of a document; None: the vocabulary has none."""
    bos: int | None = None
    """Id of the begin of a text; None: the vocabulary has none."""
    pad: int | None = None
    """Id that fills up a batch; None: the vocabulary has none."""
    fingerprint: str
    """sha256 of everything that decides the ids."""
    specials: Mapping[str, int] = {}
    """Words that become one id wherever they stand in a text, where special tokens are read as such."""
    special_words: Mapping[str, int] = {}
    """How special tokens are written; plain text never becomes one of these ids, but for the one that stands for what
    is unknown."""
    before: Sequence[int] = ()
    """Ids that stand in front of every whole text, such as the begin of text."""
    after: Sequence[int] = ()
    """Ids that stand behind every whole text."""

    @abstractmethod
    def encode_bare(self, text: str, parse_specials: bool = False, continues: bool = False) -> list[int]:
        """Ids of a text without `before` and `after`, and without end of document.

        Args:
            parse_specials: the text of a special token becomes the token; else it is plain text like any other.
            continues: the text goes on behind another one, so no space is put in front of it.

        Raises: UserError where a part of it has no id.
        """

    def encode(self, text: str, parse_specials: bool = False) -> list[int]:
        """Ids of a whole text, without end of document. Raises: UserError where a part of it has no id."""
        return [*self.before, *self.encode_bare(text, parse_specials), *self.after]

    def encode_batch(
        self, texts: Sequence[str | bytes], parse_specials: bool = False, around: bool = True
    ) -> EncodedText:
        """The same for many texts at once; bytes are read by `as_text`.

        Args:
            around: with `before` and `after`.

        Raises: UserError as `encode` does.
        """
        bare = [np.array(self.encode_bare(as_text(text), parse_specials), dtype=np.int32) for text in texts]
        return joined(self._around(bare) if around else bare)

    def _around(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """The ids of each text with `before` and `after`."""
        if not self.before and not self.after:
            return texts
        before, after = np.array(self.before, dtype=np.int32), np.array(self.after, dtype=np.int32)
        return [np.concatenate([before, ids, after]) for ids in texts]

    def normalized(self, text: str) -> str:
        """What is left of a text after encoding and decoding: the text itself, but for vocabularies that change it."""
        return text

    def token_bytes(self, number: int) -> bytes:
        """The text of one id as UTF-8 (a byte-level token may be part of a character)."""
        return self.decode([number]).encode()

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text; an end of document adds nothing. Raises: UserError for an id outside the vocabulary."""


def as_text(text: str | bytes) -> str:
    """The text with U+FFFD for what is no Unicode: bytes that are no UTF-8 (one per maximal part, as the Unicode
    standard says in 3.9 and Python, Rust and browsers do), and halves of surrogate pairs."""
    if isinstance(text, bytes):
        return text.decode(errors="replace")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def joined(texts: Sequence[np.ndarray]) -> EncodedText:
    """The ids of each text (int32) back to back."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    if len(texts) == 1:
        return EncodedText(texts[0], lengths)  # may be long: not twice
    return EncodedText(np.concatenate([*texts, np.empty(0, np.int32)]), lengths)


def fingerprint(kind: str, *parts: bytes) -> str:
    """sha256 over the kind and what decides its ids."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def require_ids(ids: Iterable[int], vocab_size: int, kind: str) -> None:
    """Raises: UserError for the first id outside the vocabulary."""
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UserError(f"id {token} at place {place} is outside the {kind}'s vocabulary (0 to {vocab_size - 1})")
