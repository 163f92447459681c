"""JSONL in, token files out: `megascratch preprocess` writes {prefix}_{key}_document.bin/.idx/.json for each key.

The files are the same for any number of workers, and appear only when all is written. A line that gives no text is
reported with its file and number and skipped, or ends the run with --strict.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.data.encode import Encoded, Recipe, encode_files, encoder
from megascratch.data.indexed import Writer, token_dtype
from megascratch.data.manifest import manifest_path, write_manifest
from megascratch.tokenizer import Tokenizer

SUMMARY = "turn JSONL text into token files (.bin/.idx)"


@dataclass
class Progress:
    """Counts, and a line on stderr every `interval` documents."""

    interval: int
    documents: int = 0
    tokens: int = 0
    bad_lines: int = 0
    text_bytes: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, encoded: Encoded) -> None:
        before = self.documents
        self.documents += len(encoded.lengths[0])
        self.tokens += sum(len(ids) for ids in encoded.tokens)
        self.text_bytes += sum(encoded.text_bytes)
        self.bad_lines += len(encoded.bad)
        if self.documents // self.interval > before // self.interval:
            print(f"{self.documents:,} documents, {self.tokens:,} tokens, {self._rate()}", file=sys.stderr, flush=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        return f"{self.documents / seconds:,.0f} documents/s, {self.text_bytes / seconds / 1e6:.2f} MB/s"

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens, {self.text_bytes:,} bytes of text, "
            f"{self._rate()}, {self.bad_lines} bad line{'' if self.bad_lines == 1 else 's'}"
        )


def main(argv: list[str]) -> int:
    """The verb. Raises: UserError for what the user can mend."""
    options = _parser().parse_args(argv)
    recipe = Recipe(
        options.tokenizer_type,
        options.tokenizer_model,
        options.vocab_size,
        tuple(options.json_keys),
        options.append_eod,
    )
    if options.workers < 1 or options.log_interval < 1:
        raise UserError(f"--workers ({options.workers}) and --log-interval ({options.log_interval}) must be at least 1")
    if len(set(options.json_keys)) < len(options.json_keys):
        raise UserError(f"--json-keys {' '.join(options.json_keys)}: each key makes one output, name it once")
    tokenizer = encoder(recipe).tokenizer
    if options.append_eod and tokenizer.eod is None:
        raise UserError(f"--append-eod: this {tokenizer.kind} has no end of document; train it without --no-eod")
    progress = Progress(options.log_interval)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(Writer(f"{options.output_prefix}_{key}_document", token_dtype(tokenizer.vocab_size)))
            for key in options.json_keys
        ]
        encoded = stack.enter_context(closing(encode_files(recipe, options.input, options.workers)))
        text_bytes = _write(encoded, writers, progress, options.strict)
        if progress.documents == 0:
            raise UserError(f"{', '.join(options.input)}: no document, {progress.bad_lines} bad lines; nothing written")
        for writer in writers:
            manifest_path(writer.prefix).unlink(missing_ok=True)  # it would describe the old files
    for key, writer, size in zip(options.json_keys, writers, text_bytes, strict=True):
        write_manifest(writer.prefix, _manifest(options, tokenizer, key, writer, size, progress.bad_lines))
        print(f"wrote {writer.prefix}.bin, .idx and .json")
    print(progress.summary())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megascratch preprocess", description=SUMMARY)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="JSONL files, also .gz; read in this order")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help="one output for each key (default: text)")
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX_KEY_document.bin/.idx/.json")
    add("--tokenizer-type", choices=tokenizers.KINDS, help="default: told by the suffix of --tokenizer-model")
    add("--tokenizer-model", metavar="FILE", help=".model (SentencePiece) or .json (characters)")
    add("--vocab-size", type=int, help="for NullTokenizer alone: number of ids, the last one ends a document")
    add("--append-eod", action="store_true", help="put the end-of-document id behind every document")
    add("--workers", type=int, default=os.cpu_count() or 1, help="worker processes (default: all cores)")
    add("--log-interval", type=int, default=1000, help="documents between progress lines (default: 1000)")
    add("--strict", action="store_true", help="stop at the first bad line, write nothing")
    return parser


def _write(results: Iterable[Encoded], writers: Sequence[Writer], progress: Progress, strict: bool) -> list[int]:
    """Appends chunk after chunk; gives the bytes of text for each key."""
    text_bytes = [0 for _ in writers]
    for encoded in results:
        if strict and encoded.bad:
            raise UserError(f"{encoded.bad[0]} (--strict: nothing written)")
        for line in encoded.bad:
            print(f"skipped {line}", file=sys.stderr)
        for at, writer in enumerate(writers):
            start = 0
            for length in encoded.lengths[at]:
                writer.add_document(encoded.tokens[at][start : start + length])
                start += length
            text_bytes[at] += encoded.text_bytes[at]
        progress.add(encoded)
    return text_bytes


def _manifest(
    options: argparse.Namespace, tokenizer: Tokenizer, key: str, writer: Writer, text_bytes: int, bad_lines: int
) -> dict[str, Any]:
    return {
        "tokenizer": {
            "kind": tokenizer.kind,
            "model": options.tokenizer_model,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eod": tokenizer.eod,
        },
        "documents": writer.documents,
        "sequences": writer.sequences,
        "tokens": writer.tokens,
        "min_token": writer.min_token,
        "max_token": writer.max_token,
        "text_bytes": text_bytes,
        "bad_lines": bad_lines,
        "bin_bytes": writer.tokens * writer.dtype.itemsize,
        "json_key": key,
        "append_eod": options.append_eod,
        "inputs": list(options.input),
    }
