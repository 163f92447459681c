"""Tokenizers for programs: load, train, encode, decode."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.tokenizer.registry import SUFFIXES
from megascratch.tokenizer.simple import CharTokenizer


class TextTokenizer:
    """A tokenizer; `megascratch.Tokenizer`. Two with equal fingerprints give equal ids for every text.

    Args:
        tokenizer: of the package; `load` and `train` make one.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    @staticmethod
    def load(
        file: str | Path | None, kind: str | None = None, vocab_size: int | None = None
    ) -> "TextTokenizer":
        """Loads a tokenizer from its file or folder.

        Args:
            kind: a value of `tokenizer_type`; default: detected from the content of the file. A ByteTokenizer and a
                NullTokenizer have no file (None).
            vocab_size: of a NullTokenizer.

        Raises: UserError for a file that is missing, damaged or of another kind.
        """
        return TextTokenizer(tokenizers.load(kind, file, vocab_size))

    @staticmethod
    def train(
        texts: Iterable[str],
        output: str | Path,
        vocab_size: int | None = None,
        kind: str | None = None,
        **options: Any,
    ) -> "TextTokenizer":
        """Trains a tokenizer and writes its file.

        Args:
            texts: the documents to train on.
            output: a file that ends in .model (SentencePiece) or .json (byte-level BPE; without a `vocab_size`, a
                tokenizer of single characters).
            kind: a value of `tokenizer_type`, in place of what `output` and `vocab_size` say.
            options: those of `megascratch.tokenizer.train`, such as `split` and `character_coverage`.

        Raises: UserError for options that do not belong to the kind, or too little text.
        """
        if isinstance(texts, str):
            texts = [texts]
        if kind is None:
            kind = _kind_of(Path(output), vocab_size)
        return TextTokenizer(
            tokenizers.train(kind, texts, output, vocab_size=vocab_size, **options)
        )

    @overload
    def encode(self, texts: str, parse_special_tokens: bool = False) -> list[int]: ...

    @overload
    def encode(
        self, texts: list[str] | tuple[str, ...], parse_special_tokens: bool = False
    ) -> list[list[int]]: ...

    def encode(
        self, texts: str | list[str] | tuple[str, ...], parse_special_tokens: bool = False
    ) -> list[int] | list[list[int]]:
        """The ids of a text, or of each text of a list; without end of document.

        Args:
            parse_special_tokens: the text of a special token becomes that token; else it is text like any other.

        Raises: UserError where a part of a text has no id.
        """
        if isinstance(texts, str):
            return self._tokenizer.encode(texts, parse_special_tokens)
        return [self._tokenizer.encode(text, parse_special_tokens) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids (a list, an array or a tensor [n]). Raises: UserError for an id outside the vocabulary."""
        return self._tokenizer.decode([int(number) for number in ids])

    @property
    def kind(self) -> str:
        """A value of `tokenizer_type`."""
        return self._tokenizer.kind

    @property
    def vocab_size(self) -> int:
        """Ids are 0 ... vocab_size - 1."""
        return self._tokenizer.vocab_size

    @property
    def eod(self) -> int | None:
        """The id of the end of a document; None: the vocabulary has none."""
        return self._tokenizer.eod

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that determines the ids."""
        return self._tokenizer.fingerprint

    def __len__(self) -> int:
        return self.vocab_size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextTokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size:,} ids, {self.fingerprint[:16]})"


def _kind_of(output: Path, vocab_size: int | None) -> str:
    """The kind that a file of this name will have. Raises: UserError for another suffix."""
    kinds = [kind for kind, suffix in SUFFIXES.items() if suffix == output.suffix]
    if not kinds:
        raise UserError(
            f"{output} must end in .model (SentencePiece) or .json (byte-level BPE, or characters)"
        )
    by_characters = vocab_size is None and CharTokenizer.kind in kinds
    return CharTokenizer.kind if by_characters else kinds[0]
