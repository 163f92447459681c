"""What every tokenizer gives: text in, ids out, and back. The kinds differ in where their vocabulary comes from."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from megascratch.config.errors import UserError


class Tokenizer(Protocol):
    """Text to ids and back; equal fingerprints give equal ids for every text."""

    @property
    def kind(self) -> str:
        """Its name in `--tokenizer-type`."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 ... vocab_size - 1."""

    @property
    def eod(self) -> int | None:
        """Id of the end of a document; None: the vocabulary has none."""

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the ids."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end of document. Raises: UserError where a part of it has no id."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for many texts."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text; an end of document adds nothing. Raises: UserError for an id outside the vocabulary."""


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
