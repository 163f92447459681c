"""JSONL in, token files out: `megascratch preprocess` writes {prefix}_{key}_document.bin/.idx/.json for each key.

    lines -> chunks -> worker processes encode -> chunks in their old order -> Writer

Chunks are cut by bytes alone and come back in order, so the files are the same for any number of workers. A few chunks
per worker are in flight, so memory does not grow with the input. A line that gives no text is reported and skipped.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.data.indexed import Writer, token_dtype
from megascratch.data.jsonl import BadLine, Line, parse, read_lines
from megascratch.data.manifest import manifest_path, write_manifest
from megascratch.tokenizer import Tokenizer

SUMMARY = "turn JSONL text into token files (.bin/.idx)"
CHUNK_BYTES, CHUNK_LINES = 1 << 19, 1 << 12
CHUNKS_PER_WORKER = 2


class Chunk(NamedTuple):
    """Neighbouring lines of one file."""

    path: str
    lines: list[Line]


class Encoded(NamedTuple):
    """What a chunk became."""

    tokens: list[np.ndarray]
    """For each key the ids of all documents back to back."""
    lengths: list[list[int]]
    """For each key the length of each document."""
    text_bytes: list[int]
    """For each key the UTF-8 bytes of all texts."""
    bad: list[str]
    """file:line: reason."""


class Recipe(NamedTuple):
    """What a process needs to know to encode."""

    tokenizer_type: str | None
    tokenizer_model: str | None
    vocab_size: int | None
    keys: tuple[str, ...]
    append_eod: bool


@dataclass(frozen=True)
class Encoder:
    """Chunk in, ids out."""

    tokenizer: Tokenizer
    keys: Sequence[str]
    append_eod: bool

    def __call__(self, chunk: Chunk) -> Encoded:
        tokens: list[list[int]] = [[] for _ in self.keys]
        lengths: list[list[int]] = [[] for _ in self.keys]
        text_bytes = [0 for _ in self.keys]
        bad = []
        for line in chunk.lines:
            try:
                texts = parse(line, self.keys)
                documents = [self._document(text) for text in texts]
            except (BadLine, UserError) as reason:
                bad.append(f"{chunk.path}:{line.number}: {reason}")
                continue
            for at, (text, document) in enumerate(zip(texts, documents, strict=True)):
                tokens[at] += document
                lengths[at].append(len(document))
                text_bytes[at] += len(text.encode())
        dtype = token_dtype(self.tokenizer.vocab_size)
        return Encoded([np.array(ids, dtype=dtype) for ids in tokens], lengths, text_bytes, bad)

    def _document(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        return [*ids, self.tokenizer.eod] if ids and self.append_eod and self.tokenizer.eod is not None else ids


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
    tokenizer = _encoder(recipe).tokenizer
    if options.append_eod and tokenizer.eod is None:
        raise UserError(f"--append-eod: this {tokenizer.kind} has no end of document; train it without --no-eod")
    progress = Progress(options.log_interval)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(Writer(f"{options.output_prefix}_{key}_document", token_dtype(tokenizer.vocab_size)))
            for key in options.json_keys
        ]
        encoded = stack.enter_context(closing(_encoded(recipe, options.input, options.workers)))
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


def _chunks(paths: Sequence[str]) -> Iterator[Chunk]:
    """Lines of all files in order, cut by their bytes and number alone."""
    for path in paths:
        lines: list[Line] = []
        size = 0
        for line in read_lines(path):
            lines.append(line)
            size += len(line.raw or b"")
            if size >= CHUNK_BYTES or len(lines) >= CHUNK_LINES:
                yield Chunk(path, lines)
                lines, size = [], 0
        if lines:
            yield Chunk(path, lines)


def _encoded(recipe: Recipe, paths: Sequence[str], workers: int) -> Generator[Encoded, None, None]:
    """Chunks become ids, here or in worker processes, and come back in order."""
    if workers == 1:
        yield from (_encode(recipe, chunk) for chunk in _chunks(paths))
        return
    spawn = multiprocessing.get_context("spawn")  # the same on every system, and safe whatever threads are running
    pool = ProcessPoolExecutor(workers, spawn, initializer=_start_worker)
    try:
        yield from _in_order(pool, recipe, _chunks(paths), workers * CHUNKS_PER_WORKER)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (killed, or out of memory); nothing written. "
            f"Free memory or use fewer than --workers {workers}"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, recipe: Recipe, chunks: Iterator[Chunk], in_flight: int) -> Iterator[Encoded]:
    waiting: deque[Future[Encoded]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_encode, recipe, chunk))
        if len(waiting) >= in_flight:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@cache
def _encoder(recipe: Recipe) -> Encoder:
    """Loads the tokenizer, once per process."""
    tokenizer = tokenizers.load(recipe.tokenizer_type, recipe.tokenizer_model, recipe.vocab_size)
    return Encoder(tokenizer, recipe.keys, recipe.append_eod)


def _encode(recipe: Recipe, chunk: Chunk) -> Encoded:
    try:
        return _encoder(recipe)(chunk)
    except Exception as error:  # what a tokenizer's library may raise is not known here; the place in the input is
        raise UserError(
            f"{chunk.path}, lines {chunk.lines[0].number} to {chunk.lines[-1].number} cannot be encoded: "
            f"{type(error).__name__}: {error}; nothing written"
        ) from error
