"""Lines of text in, token ids out, on several processes and in the old order: the engine of `megascratch preprocess`.

    lines -> chunks, cut by bytes and number alone -> worker k takes chunks k, k + N, k + 2 N ... -> results in order

So the result is the same for any number of workers. Each worker has at most two chunks and drains its inbox in a thread
of its own: no side ever waits for the other to read, and memory does not grow with the input. A worker that dies closes
its pipe, which ends the run; a parent that dies does the same to its workers.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.data.indexed import token_dtype
from megascratch.data.jsonl import BadLine, Line, parse, read_lines
from megascratch.tokenizer import Tokenizer

CHUNK_BYTES, CHUNK_LINES = 1 << 19, 1 << 12
CHUNKS_PER_WORKER = 2


class Recipe(NamedTuple):
    """What a process needs to know to encode."""

    tokenizer_type: str | None
    tokenizer_model: str | None
    vocab_size: int | None
    keys: tuple[str, ...]
    append_eod: bool


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


def encode_files(recipe: Recipe, paths: Sequence[str], workers: int) -> Generator[Encoded, None, None]:
    """The files' chunks as ids, in order; closing the generator ends the workers.

    Raises: UserError where a file cannot be read, a tokenizer fails, or a worker dies.
    """
    if workers > 1:
        yield from _on_workers(recipe, chunks(paths), workers)
        return
    for chunk in chunks(paths):
        yield encode(recipe, chunk)


def chunks(paths: Sequence[str]) -> Iterator[Chunk]:
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


def encode(recipe: Recipe, chunk: Chunk) -> Encoded:
    """One chunk. Raises: UserError naming the lines where the tokenizer fails."""
    try:
        return encoder(recipe)(chunk)
    except Exception as error:  # what a tokenizer's library may raise is not known here; the place in the input is
        raise UserError(
            f"{chunk.path}, lines {chunk.lines[0].number} to {chunk.lines[-1].number} cannot be encoded: "
            f"{type(error).__name__}: {error}; nothing written"
        ) from error


@cache
def encoder(recipe: Recipe) -> "Encoder":
    """Loads the tokenizer, once per process."""
    tokenizer = tokenizers.load(recipe.tokenizer_type, recipe.tokenizer_model, recipe.vocab_size)
    return Encoder(tokenizer, recipe.keys, recipe.append_eod)


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


class _Worker:
    """A process that answers each chunk it is sent."""

    def __init__(self, recipe: Recipe):
        spawn = multiprocessing.get_context("spawn")  # the same on every system, and safe whatever threads are running
        self._pipe, theirs = spawn.Pipe()
        self._process: BaseProcess = spawn.Process(target=_serve, args=(theirs, recipe), daemon=True)
        self._process.start()
        theirs.close()  # else this process would hold the pipe of a dead worker open

    def send(self, chunk: Chunk) -> None:
        try:
            self._pipe.send(chunk)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Encoded:
        try:
            answer = self._pipe.recv()
        except (OSError, EOFError) as error:
            raise self._died() from error
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _died(self) -> UserError:
        self._process.join(timeout=1)
        return UserError(
            f"a worker process died (exit code {self._process.exitcode}; -9 is often too little memory); "
            f"nothing written. Free memory or use fewer --workers"
        )

    def end(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _on_workers(recipe: Recipe, work: Iterator[Chunk], count: int) -> Generator[Encoded, None, None]:
    workers: list[_Worker] = []
    asked: deque[_Worker] = deque()
    try:
        turns = cycle(range(count))
        for chunk in work:
            turn = next(turns)
            if turn == len(workers):
                workers.append(_Worker(recipe))  # only as many as there are chunks
            if len(asked) == count * CHUNKS_PER_WORKER:
                yield asked.popleft().receive()
            workers[turn].send(chunk)
            asked.append(workers[turn])
        while asked:
            yield asked.popleft().receive()
    finally:
        for worker in workers:
            worker.end()


def _serve(pipe: Connection, recipe: Recipe) -> None:
    """What a worker does until its parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    inbox: SimpleQueue[Chunk] = SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    while True:
        chunk = inbox.get()
        try:
            answer: Encoded | UserError = encode(recipe, chunk)
        except UserError as error:
            answer = error
        pipe.send(answer)


def _receive(pipe: Connection, inbox: "SimpleQueue[Chunk]") -> None:
    try:
        while True:
            inbox.put(pipe.recv())
    except (OSError, EOFError):
        os._exit(0)  # the parent is done, or gone
