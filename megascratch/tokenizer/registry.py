"""Loads and trains tokenizers by kind (`--tokenizer-type`) or by the content of a file or folder."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.laws.data import gpt2_tokenizer_has_two_files
from megascratch.config.registry import is_registered, look_up, names
from megascratch.runtime.atomic_file import explain_write_errors, write_atomically
from megascratch.tokenizer import sentence_piece, train_bpe
from megascratch.tokenizer.hugging_face import HuggingFaceTokenizer
from megascratch.tokenizer.interface import Tokenizer
from megascratch.tokenizer.sentence_piece import SentencePieceTokenizer
from megascratch.tokenizer.simple import ByteTokenizer, CharTokenizer, NullTokenizer
from megascratch.tokenizer.splits import ENCODINGS, FILE_NAMES
from megascratch.tokenizer.vocabulary import (
    END_OF_TEXT,
    MEGATRON_SPECIAL_TOKENS,
    MEGATRON_SPECIALS,
    from_ranks,
    inside,
    is_megatron_ranks,
    read_bytes,
    read_gpt2,
    read_json,
    read_megatron_ranks,
    read_ranks,
)

SUFFIXES = {
    SentencePieceTokenizer.kind: ".model",
    HuggingFaceTokenizer.kind: ".json",
    CharTokenizer.kind: ".json",
}
"""Kind that can be trained here -> suffix of its file."""


def _load_ranks(path: Path) -> Tokenizer:
    """Loads a rank file whose name implies how text is split and which tokens are special."""
    if path.name not in FILE_NAMES:
        raise UserError(
            f"{path} holds tiktoken's ranks, which define neither how text is split nor which tokens are special; "
            "convert it once: megascratch tokenizer convert "
            f"{path} --output tokenizer.json --encoding {'|'.join(ENCODINGS)}"
        )
    encoding = ENCODINGS[FILE_NAMES[path.name]]
    return HuggingFaceTokenizer(
        from_ranks(read_ranks(path), encoding, str(path)).record(), str(path)
    )


def _load_gpt2(path: Path) -> Tokenizer:
    """Loads vocab.json with the merges.txt next to it (or gpt2-vocab.json with gpt2-merges.txt)."""
    merges = inside(
        path.parent, Path(path.name.replace("vocab", "merges")).with_suffix(".txt").name
    )
    return HuggingFaceTokenizer(read_gpt2(path, merges).record(), str(path))


FROM_FILE: dict[str, Callable[[Path], Tokenizer]] = {
    SentencePieceTokenizer.kind: SentencePieceTokenizer.load,
    HuggingFaceTokenizer.kind: HuggingFaceTokenizer.load,
    "GPT2BPETokenizer": _load_gpt2,
    "TikTokenizer": _load_ranks,
    CharTokenizer.kind: CharTokenizer.load,
    "GPTSentencePieceTokenizer": SentencePieceTokenizer.load,
    "Llama2Tokenizer": sentence_piece.load_with_bos,
}
"""Name in `--tokenizer-type` -> function that reads its file. Megatron's names, except CharTokenizer."""

IN_FOLDERS = {
    "tokenizer.json": "HuggingFaceTokenizer",
    "vocab.json": "GPT2BPETokenizer",
    "tokenizer.model": None,
}
KINDS = (*FROM_FILE, ByteTokenizer.kind, NullTokenizer.kind)


class TokenizerSource(NamedTuple):
    """What names a tokenizer in settings and flags, under the same names."""

    tokenizer_type: str | None = None
    """Its kind; None: detected from the files."""
    tokenizer_model: str | None = None
    """Its file, or the folder that contains it."""
    vocab_size: int | None = None
    """Number of ids of a NullTokenizer, and of a vocabulary of ranks that is cut."""
    vocab_file: str | None = None
    """vocab.json of a GPT-2 tokenizer."""
    merge_file: str | None = None
    """Its merges.txt."""
    tiktoken_pattern: str | None = None
    tiktoken_num_special_tokens: int = MEGATRON_SPECIALS
    tokenizer_special_tokens: tuple[str, ...] | None = None
    """The three of them: see `read_megatron_ranks`."""
    tokenizer_hf_no_include_special_tokens: bool = False
    """Whether no ids are put around a text, whatever a tokenizer.json says."""
    null_tokenizer_eod_id: int | None = None
    """End of document of a NullTokenizer; None: its last id."""

    @classmethod
    def of(cls, named: object, vocab_size: int | None = None) -> "TokenizerSource":
        """From a record or parsed flags that have attributes of these names; those that are missing are not given."""
        found = {name: getattr(named, name) for name in cls._fields if hasattr(named, name)}
        if found.get("tokenizer_special_tokens") is not None:
            found["tokenizer_special_tokens"] = tuple(found["tokenizer_special_tokens"])
        return cls(**{"vocab_size": vocab_size} | found)

    @property
    def is_named(self) -> bool:
        """Whether anything but a vocab_size is given."""
        return any((self.tokenizer_type, self.tokenizer_model, self.vocab_file, self.merge_file))

    @property
    def main_file(self) -> str | None:
        """The file by which a corpus names its tokenizer."""
        return self.tokenizer_model or self.vocab_file

    def files(self) -> list[tuple[str, str | None]]:
        """The flags that name files, and the files."""
        return [
            ("--tokenizer-model", self.tokenizer_model),
            ("--vocab-file", self.vocab_file),
            ("--merge-file", self.merge_file),
        ]

    def words(self) -> list[str]:
        """The flags that name this tokenizer, except --vocab-size."""
        given = [*self.files(), ("--tokenizer-type", self.tokenizer_type)]
        given.append(("--tiktoken-pattern", self.tiktoken_pattern))
        words = []
        for flag, value in given:
            words += [] if value is None else [flag, value]
        if self.tiktoken_num_special_tokens != MEGATRON_SPECIALS:
            words += ["--tiktoken-num-special-tokens", str(self.tiktoken_num_special_tokens)]
        if self.tokenizer_special_tokens is not None:
            words += ["--tokenizer-special-tokens", *self.tokenizer_special_tokens]
        if self.tokenizer_hf_no_include_special_tokens:
            words.append("--tokenizer-hf-no-include-special-tokens")
        if self.null_tokenizer_eod_id is not None:
            words += ["--null-tokenizer-eod-id", str(self.null_tokenizer_eod_id)]
        return words

    def load(self) -> Tokenizer:
        """The tokenizer. Raises: UserError as the function `load` does, and for files that do not belong together."""
        tokenizer = self._whole()
        if self.tokenizer_hf_no_include_special_tokens and isinstance(
            tokenizer, HuggingFaceTokenizer
        ):
            tokenizer.leave_bare()
        return tokenizer

    def _whole(self) -> Tokenizer:
        """The tokenizer as its files have it."""
        problem = gpt2_tokenizer_has_two_files(
            self.vocab_file, self.merge_file, self.tokenizer_model, self.tokenizer_type
        )
        if problem is not None:
            raise UserError(problem)
        if self.vocab_file is not None and self.merge_file is not None:
            for flag, path in self.files()[1:]:
                if path is not None and not os.access(path, os.R_OK):
                    raise UserError(f"{flag} {path} cannot be read: there is no readable file")
            vocabulary = read_gpt2(Path(self.vocab_file), Path(self.merge_file))
            return HuggingFaceTokenizer(vocabulary.record(), self.vocab_file)
        path = self.tokenizer_model
        kind = self.tokenizer_type
        if path is not None and kind in (None, "TikTokenizer") and is_megatron_ranks(Path(path)):
            return self._megatron_ranks(Path(path))
        if kind == NullTokenizer.kind and path is None and self.vocab_size is not None:
            return NullTokenizer(self.vocab_size, self.null_tokenizer_eod_id)
        return load(kind, path, self.vocab_size)

    def _megatron_ranks(self, path: Path) -> Tokenizer:
        vocabulary = read_megatron_ranks(
            path,
            self.vocab_size,
            self.tiktoken_num_special_tokens,
            self.tokenizer_special_tokens or MEGATRON_SPECIAL_TOKENS,
            f"megatron-{self.tiktoken_pattern or 'v2'}",
        )
        roles = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"}
        return HuggingFaceTokenizer(vocabulary.record(), str(path), roles)


def load(
    tokenizer_type: str | None, tokenizer_model: str | Path | None, vocab_size: int | None = None
) -> Tokenizer:
    """Loads a tokenizer of a kind (default: detected from the file). `vocab_size` is only for the NullTokenizer.

    `tokenizer_model` may be a folder: its tokenizer.json, else vocab.json with merges.txt, else tokenizer.model.
    A `TokenizerSource` loads what two files or more options name.

    Raises: UserError for an unknown kind, a missing file, or a file of another kind.
    """
    path = None if tokenizer_model is None else Path(tokenizer_model)
    if path is not None and not (tokenizer_type and is_registered("tokenizer", tokenizer_type)):
        path = _in_folder(path, tokenizer_type)
    kind = tokenizer_type or kind_of(path)
    if kind in FROM_FILE:
        if path is None:
            raise UserError(
                f"--tokenizer-type {kind} needs --tokenizer-model, the tokenizer's file"
            )
        return FROM_FILE[kind](path)
    if is_registered("tokenizer", kind):
        return _load_own(kind, path)
    if kind not in KINDS:
        raise UserError(
            f"--tokenizer-type {kind} is unknown; use one of {', '.join(names('tokenizer'))}, or give --import with "
            "the file that registers it"
        )
    if path is not None:
        raise UserError(f"--tokenizer-type {kind} reads no file; remove --tokenizer-model {path}")
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    if vocab_size is None:
        raise UserError(
            "--tokenizer-type NullTokenizer needs --vocab-size, the number of ids with the end of document"
        )
    return NullTokenizer(vocab_size)


def _load_own(kind: str, path: Path | None) -> Tokenizer:
    """A tokenizer that a user registered. Raises: UserError if it fails or lacks what every tokenizer has."""
    try:
        tokenizer = look_up("tokenizer", kind, FROM_FILE)(path)  # type: ignore[arg-type]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the tokenizer {kind} cannot be made from {path}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            f"the tokenizer {kind} is {type(tokenizer).__name__}: derive it from megascratch.tokenizer.Tokenizer"
        )
    tokenizer.kind = kind
    size = getattr(tokenizer, "vocab_size", None)
    if not isinstance(size, int) or size < 1:
        raise UserError(f"the tokenizer {kind} has vocab_size {size}: set the number of its ids")
    for name in ("eod", "bos", "pad"):
        number = getattr(tokenizer, name)
        if number is not None and not 0 <= number < size:
            raise UserError(f"the tokenizer {kind} has {name} {number}, outside of 0 to {size - 1}")
    if not isinstance(getattr(tokenizer, "fingerprint", None), str):
        raise UserError(
            f"the tokenizer {kind} has no fingerprint: set it to megascratch.tokenizer.interface.fingerprint(kind, "
            "everything that determines the ids, as bytes)"
        )
    return tokenizer


def _in_folder(path: Path, kind: str | None) -> Path:
    if not path.is_dir():
        return path
    present = [name for name in IN_FOLDERS if (path / name).exists()]
    if not present:
        raise UserError(
            f"the folder --tokenizer-model {path} holds none of {', '.join(IN_FOLDERS)}"
        )
    matching = [name for name in present if kind in (None, IN_FOLDERS[name])]
    name = matching[0] if matching else present[0]
    return inside(path, name)


def kind_of(path: Path | None) -> str:
    """The kind of tokenizer in a file. Raises: UserError where it is not a tokenizer."""
    if path is None:
        raise UserError(
            f"no tokenizer: give --tokenizer-model or --tokenizer-type ({', '.join(KINDS)})"
        )
    if path.suffix == ".json":
        record = read_json(path, "tokenizer")
        if isinstance(record, dict) and "tokenizer" in record:
            return CharTokenizer.kind
        has_model = isinstance(record, dict) and "model" in record
        return (
            HuggingFaceTokenizer.kind
            if has_model or "vocab" not in path.name
            else "GPT2BPETokenizer"
        )
    if path.suffix == ".tiktoken" or (path.suffix == ".model" and _holds_ranks(path)):
        return "TikTokenizer"
    if path.suffix == ".model":
        return SentencePieceTokenizer.kind
    if not path.exists():
        read_bytes(path)  # says that it is missing
    raise UserError(
        f"the suffix of --tokenizer-model {path} is none of .json, .model and .tiktoken; give --tokenizer-type"
    )


def _holds_ranks(path: Path) -> bool:
    """Llama 3's tokenizer.model is a rank file; SentencePiece's are binary."""
    first_line = read_bytes(path)[:64].split(b"\n")[0]
    return first_line.split(b" ")[-1].isdigit()


def train(
    kind: str,
    texts: Iterable[str],
    output: str | Path,
    *,
    vocab_size: int | None = None,
    split: str = "gpt2",
    specials: Sequence[str] = (END_OF_TEXT,),
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 0.9995,
    eod: bool = True,
    threads: int = 1,
) -> Tokenizer:
    """Trains a SentencePieceTokenizer or a HuggingFaceTokenizer (byte-level BPE), both with `vocab_size` ids, or a
    CharTokenizer (as many ids as its text has characters), and writes `output`.

    Args:
        split, specials: for the HuggingFaceTokenizer.
        model_type, character_coverage, threads: for the SentencePieceTokenizer.

    Raises: UserError for a kind that cannot be trained, options that do not belong to it, or too little text.
    """
    if kind not in SUFFIXES:
        raise UserError(f"a {kind} cannot be trained; use {' or '.join(SUFFIXES)}")
    if Path(output).suffix != SUFFIXES[kind]:
        raise UserError(
            f"--output {output} must end in {SUFFIXES[kind]}: the kind is recognised by the suffix when it is loaded"
        )
    if kind == CharTokenizer.kind:
        if vocab_size is not None:
            raise UserError(
                f"--vocab-size {vocab_size} is not for a CharTokenizer, which has the characters of its text: remove it"
            )
        content = CharTokenizer.train(texts, eod).dump()
    elif vocab_size is None or not eod:
        raise UserError(
            f"a {kind} needs --vocab-size and always has an end of document (no --no-eod)"
        )
    elif kind == HuggingFaceTokenizer.kind:
        content = dump(train_bpe.train(texts, vocab_size, split, specials).record())
    else:
        content = sentence_piece.train(
            texts,
            vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            threads=threads,
        )
    write(Path(output), content)
    return load(kind, output)


def dump(record: dict[str, Any]) -> bytes:
    """The content of a tokenizer.json."""
    return (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """Writes a file atomically, so that a half-written one is never seen. Raises: UserError where that fails."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
