"""What every tokenizer gives: text in, ids out, and back. The kinds differ in where their vocabulary comes from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from megascratch.config.errors import UserError


class Encoded(NamedTuple):
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
    """Words that become one id wherever they stand in a text."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end of document. Raises: UserError where a part of it has no id."""

    def encode_batch(self, texts: Sequence[str | bytes]) -> Encoded:
        """The same for many texts at once; bytes are read by `as_text`. Raises: UserError as `encode` does."""
        return joined([np.array(self.encode(as_text(text)), dtype=np.int32) for text in texts])

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


def joined(texts: Sequence[np.ndarray]) -> Encoded:
    """The ids of each text (int32) back to back."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return Encoded(np.concatenate([*texts, np.empty(0, np.int32)]), lengths)


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
