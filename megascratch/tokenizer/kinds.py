"""The kinds of tokenizers: a name or a file in, a tokenizer out."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from megascratch.config.errors import UserError
from megascratch.tokenizer import sentence_piece
from megascratch.tokenizer.interface import Tokenizer
from megascratch.tokenizer.plain import ByteTokenizer, CharTokenizer, NullTokenizer
from megascratch.tokenizer.sentence_piece import SentencePieceTokenizer

FROM_FILE: dict[str, type[SentencePieceTokenizer] | type[CharTokenizer]] = {
    SentencePieceTokenizer.kind: SentencePieceTokenizer,
    CharTokenizer.kind: CharTokenizer,
}
SUFFIXES = {SentencePieceTokenizer.kind: ".model", CharTokenizer.kind: ".json"}
KINDS = (*FROM_FILE, ByteTokenizer.kind, NullTokenizer.kind)


def load(tokenizer_type: str | None, tokenizer_model: str | Path | None, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a kind (default: told by the file's suffix). `vocab_size` is the NullTokenizer's alone.

    Raises: UserError for an unknown kind, a missing file, or a file of another kind.
    """
    kind = tokenizer_type or _kind_of(tokenizer_model)
    if kind in FROM_FILE:
        if tokenizer_model is None:
            raise UserError(f"--tokenizer-type {kind} needs --tokenizer-model, a {SUFFIXES[kind]} file")
        return _read(kind, Path(tokenizer_model))
    if kind not in KINDS:
        raise UserError(f"--tokenizer-type {kind} is unknown; use one of {', '.join(KINDS)}")
    if tokenizer_model is not None:
        raise UserError(f"--tokenizer-type {kind} reads no file; leave --tokenizer-model {tokenizer_model} away")
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    if vocab_size is None:
        raise UserError("--tokenizer-type NullTokenizer needs --vocab-size, the number of ids with the end of document")
    return NullTokenizer(vocab_size)


def _kind_of(model: str | Path | None) -> str:
    if model is None:
        raise UserError(f"no tokenizer: give --tokenizer-model or --tokenizer-type ({', '.join(KINDS)})")
    for kind, suffix in SUFFIXES.items():
        if Path(model).suffix == suffix:
            return kind
    raise UserError(
        f"the suffix of --tokenizer-model {model} is neither {' nor '.join(SUFFIXES.values())}; give --tokenizer-type"
    )


def _read(kind: str, path: Path) -> Tokenizer:
    try:
        return FROM_FILE[kind].load(path)
    except OSError as error:
        raise UserError(f"--tokenizer-model {path} cannot be read: {error.strerror}") from error


def train(
    kind: str,
    texts: Iterable[str],
    output: str | Path,
    *,
    vocab_size: int | None = None,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 0.9995,
    eod: bool = True,
    threads: int = 1,
) -> Tokenizer:
    """Trains a SentencePieceTokenizer (needs `vocab_size`) or a CharTokenizer (its text decides) and writes `output`.

    Raises: UserError for a kind that is not trained, options that do not belong to it, or text that does not suffice.
    """
    if kind not in FROM_FILE:
        raise UserError(f"a {kind} is not trained; use {' or '.join(FROM_FILE)}")
    if Path(output).suffix != SUFFIXES[kind]:
        raise UserError(f"--output {output} must end in {SUFFIXES[kind]}: the suffix tells the kind when it is loaded")
    if kind == CharTokenizer.kind:
        if vocab_size is not None:
            raise UserError(f"--vocab-size {vocab_size}: a CharTokenizer has the characters of its text, leave it away")
        content = CharTokenizer.train(texts, eod).dump()
    else:
        if vocab_size is None or not eod:
            raise UserError(f"a {kind} needs --vocab-size and always has an end of document (no --no-eod)")
        content = sentence_piece.train(
            texts, vocab_size, model_type=model_type, character_coverage=character_coverage, threads=threads
        )
    _write(Path(output), content)
    return load(kind, output)


def _write(path: Path, content: bytes) -> None:
    """In one move: a half-written vocabulary is never seen."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
