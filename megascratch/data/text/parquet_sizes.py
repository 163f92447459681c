"""Reads the row group sizes of Parquet files in a child process, because a damaged file can abort its reader.

The rows themselves are read by the workers of `executors.py`, which are child processes already.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType

from megascratch.config.errors import UserError
from megascratch.data.text.parquet import row_group_bytes


class RowGroupSizes:
    """Answers for one file after the other; the child starts with the first one and ends with `close` or its parent."""

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def of(self, path: str, keys: Sequence[str]) -> list[int]:
        """Bytes of the wanted columns in each row group.

        Raises: UserError where it is not a Parquet file, lacks a key, or crashes its reader.
        """
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((path, tuple(keys)))
            answer = self._pipe.recv()
        except (OSError, EOFError) as error:
            code = self._end()
            raise UserError(f"{path} cannot be read as Parquet: {death_in_words(code)}") from error
        if isinstance(answer, UserError):
            raise answer
        sizes: list[int] = answer
        return sizes

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # else this process would hold the pipe of a dead child open

    def _end(self) -> int | None:
        """Waits for the child and returns its exit code."""
        if self._pipe is None or self._process is None:
            return None
        self._pipe.close()
        self._process.join(timeout=10)
        code = self._process.exitcode
        self._process.terminate()
        self._pipe = self._process = None
        return code

    def close(self) -> None:
        """Ends the child process."""
        self._end()

    def __enter__(self) -> "RowGroupSizes":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


def death_in_words(code: int | None) -> str:
    """Why the process that read a file ended without an answer."""
    if code is not None and code < 0 and code != -signal.SIGKILL:
        return f"its reader was ended by {signal.Signals(-code).name}, so the file is damaged: copy it again"
    return f"its reader ended with exit code {code} (-9 is often too little memory)"


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    with suppress(OSError, EOFError):  # the parent has finished or died
        while True:
            path, keys = pipe.recv()
            try:
                pipe.send(row_group_bytes(path, keys))
            except UserError as error:
                pipe.send(error)
            except Exception as error:  # a damaged file may raise anything
                pipe.send(UserError(f"{path} cannot be read as Parquet: {type(error).__name__}: {error}"))
    os._exit(0)
