"""The interface of all tokenizers: encode texts to ids, decode ids to text, special tokens, fingerprint."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from megascratch.config.errors import UserError


class EncodedText(NamedTuple):
    """The ids of many texts."""

    ids: np.ndarray
    """[sum of lengths] int32: the ids of all texts back to back."""
    lengths: np.ndarray
    """[texts] int64: ids of each text."""


class Tokenizer(ABC):
    """Encodes text to ids and back; tokenizers with equal fingerprints give equal ids for every text."""

    kind: str
    """Its name in `--tokenizer-type`."""
    vocab_size: int
    """Ids are 0 ... vocab_size - 1."""
    eod: int | None = None
    """Id of the end of a document; None: the vocabulary has none."""
    bos: int | None = None
    """Id of the beginning of a text; None: the vocabulary has none."""
    pad: int | None = None
    """Id for padding; None: the vocabulary has none."""
    fingerprint: str
    """sha256 of everything that determines the ids."""
    specials: Mapping[str, int] = {}
    """Words that become one id wherever they occur in a text, if special tokens are parsed."""
    special_words: Mapping[str, int] = {}
    """Spelling of the special tokens -> id; plain text never becomes one of these ids, except the unknown token."""
    before: Sequence[int] = ()
    """Ids put in front of every complete text, such as the beginning of text."""
    after: Sequence[int] = ()
    """Ids put at the end of every complete text."""

    @abstractmethod
    def encode_bare(
        self, text: str, parse_specials: bool = False, continues: bool = False
    ) -> list[int]:
        """Ids of a text without `before` and `after`, and without end of document.

        Args:
            parse_specials: the text of a special token becomes the token; else it is plain text like any other.
            continues: the text continues a previous one, so no space is put in front of it.

        Raises: UserError where a part of the text has no id.
        """

    def encode(self, text: str, parse_specials: bool = False) -> list[int]:
        """Ids of a complete text, without end of document. Raises: UserError where a part of it has no id."""
        return [*self.before, *self.encode_bare(text, parse_specials), *self.after]

    def encode_batch(
        self, texts: Sequence[str | bytes], parse_specials: bool = False, around: bool = True
    ) -> EncodedText:
        """Encodes many texts at once; bytes are decoded by `as_text`.

        Args:
            around: whether to add `before` and `after`.

        Raises: UserError as `encode` does.
        """
        bare = []
        for text in texts:
            ids = self.encode_bare(as_text(text), parse_specials)
            bare.append(np.array(ids, dtype=np.int32))
        return joined(self._around(bare) if around else bare)

    def _around(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """The ids of each text with `before` and `after`."""
        if not self.before and not self.after:
            return texts
        before = np.array(self.before, dtype=np.int32)
        after = np.array(self.after, dtype=np.int32)
        return [np.concatenate([before, ids, after]) for ids in texts]

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling; None: the vocabulary has no such token."""
        return {**self.specials, **self.special_words}.get(token)

    def normalized(self, text: str) -> str:
        """The text after encoding and decoding: unchanged, unless the vocabulary normalises it."""
        return text

    def token_bytes(self, number: int) -> bytes:
        """The text of one id as UTF-8 bytes (a byte-level token may be part of a character)."""
        return self.decode([number]).encode()

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text; an end of document adds nothing. Raises: UserError for an id outside the vocabulary."""


def as_text(text: str | bytes) -> str:
    """The text with U+FFFD for invalid Unicode: bytes that are not UTF-8 (one per maximal part, as the Unicode standard
    specifies in 3.9 and Python, Rust and browsers do), and halves of surrogate pairs."""
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
        return EncodedText(texts[0], lengths)  # may be long: not copied
    return EncodedText(np.concatenate([*texts, np.empty(0, np.int32)]), lengths)


def fingerprint(kind: str, *parts: bytes) -> str:
    """sha256 over the kind and everything that determines its ids."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def require_ids(ids: Iterable[int], vocab_size: int, kind: str) -> None:
    """Raises: UserError for the first id outside the vocabulary."""
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UserError(
                f"id {token} at place {place} is outside the {kind}'s vocabulary (0 to {vocab_size - 1})"
            )
