"""Token ids on disk: documents in, a pair of files {prefix}.bin / {prefix}.idx out, and back through a memory map.

`.bin` holds the ids back to back in the dtype that `.idx` names, without header or padding; `index_file.py` describes
`.idx`.
"""

import hashlib
import mmap
import os
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, final

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.index_file import BLOCK, HEADER, MAGIC, TOKEN_DTYPES, VERSION, broken_laws, read_index


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype a corpus of this vocabulary is stored in: uint16 below 65,500, else int32 (Megatron's rule)."""
    return np.dtype("uint16" if vocab_size < 65500 else "int32")


def bin_path(prefix: str | Path) -> Path:
    """The ids."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Where each sequence lies in the ids."""
    return Path(f"{prefix}.idx")


@final
class Writer:
    """Writes one corpus under temporary names; `finish` puts both files in place, an error removes them.

    >>> with Writer("corpus", np.uint16) as writer:
    ...     writer.add_document([5, 6, 7])
    """

    def __init__(self, prefix: str | Path, dtype: Any):
        self.prefix, self.dtype = str(prefix), np.dtype(dtype)
        self._code = next((code for code, name in TOKEN_DTYPES.items() if name == self.dtype.name), None)
        if self._code is None:
            raise UserError(
                f"{prefix}: tokens cannot be stored as {self.dtype}; use {', '.join(TOKEN_DTYPES.values())}"
            )
        self.tokens, self.min_token, self.max_token = 0, 0, -1
        self._lengths, self._documents = array("i"), array("q", [0])
        self._bin_partial, self._idx_partial = (
            path.with_name(f"{path.name}.{os.getpid()}.partial") for path in (bin_path(prefix), idx_path(prefix))
        )
        self._bin = _open_for_writing(self._bin_partial)

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self._documents) - 1

    @property
    def sequences(self) -> int:
        """Sequences added so far."""
        return len(self._lengths)

    def add_document(self, tokens: Sequence[int] | np.ndarray, lengths: Sequence[int] | None = None) -> None:
        """Appends one document: `tokens` cut into sequences of `lengths` (default: one; none if there are no tokens).

        Raises: ValueError where an id does not fit the dtype or the lengths do not add up.
        """
        ids = np.asarray(tokens)
        lengths = ([len(ids)] if len(ids) else []) if lengths is None else lengths
        if sum(lengths) != len(ids) or any(length < 0 for length in lengths):
            raise ValueError(f"lengths {list(lengths)} do not cut a document of {len(ids)} tokens")
        if len(ids):
            self._append(ids)
        self._lengths.extend(lengths)
        self._documents.append(len(self._lengths))

    def _append(self, ids: np.ndarray) -> None:
        low, high, info = int(ids.min()), int(ids.max()), np.iinfo(self.dtype)
        if low < info.min or high > info.max:
            raise ValueError(f"ids from {low} to {high} do not fit {self.dtype} ({info.min} to {info.max})")
        self._bin.write(ids.astype(self.dtype.newbyteorder("<"), copy=False).tobytes())
        self.tokens += len(ids)
        self.min_token, self.max_token = min(self.min_token, low), max(self.max_token, high)

    def finish(self) -> None:
        """Writes the index and moves both files to their final names; readers never see half a file."""
        _close_durably(self._bin)
        with _open_for_writing(self._idx_partial) as idx:
            self._write_index(idx)
            idx.flush()
            os.fsync(idx.fileno())
        idx_path(self.prefix).unlink(missing_ok=True)  # an old index must never describe the new ids
        os.replace(self._bin_partial, bin_path(self.prefix))
        os.replace(self._idx_partial, idx_path(self.prefix))
        _sync_folder(bin_path(self.prefix).parent)

    def _write_index(self, idx: IO[bytes]) -> None:
        lengths = np.asarray(self._lengths, dtype="<i4")
        pointers = np.zeros(len(lengths), dtype="<i8")
        np.cumsum(lengths[:-1], out=pointers[1:], dtype=np.int64)
        pointers *= self.dtype.itemsize
        idx.write(HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(self._documents)))
        for part in (lengths, pointers, np.asarray(self._documents, dtype="<i8")):
            idx.write(part.tobytes())

    def abort(self) -> None:
        """Removes what was written so far; files already in place stay."""
        self._bin.close()
        self._bin_partial.unlink(missing_ok=True)
        self._idx_partial.unlink(missing_ok=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        elif not self._bin.closed:
            self.finish()


def _open_for_writing(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another output prefix") from error


def _close_durably(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reader:
    """One corpus, memory-mapped; every law of the format is checked when it is opened.

    Attributes: `lengths` int32 [S] tokens per sequence, `pointers` int64 [S] bytes, `documents` int64 [D], `dtype`.
    Raises: UserError naming the file, the law and the numbers.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        self._idx, self._bin = idx_path(prefix), bin_path(prefix)
        raw = _map(self._idx, "index")
        index = read_index(self._idx, raw)
        self.dtype, self.lengths, self.pointers, self.documents = index
        self._raw_index, self._raw_tokens = raw, _map(self._bin, "token file")
        for law in broken_laws(index):
            raise UserError(
                f"{self._idx}: {law}; the file is damaged or not a token index, preprocess the corpus again"
            )
        self._check_size()

    def _check_size(self) -> None:
        needed = int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if len(self) else 0
        if needed > self.bin_bytes:
            raise UserError(
                f"{self._bin} is shorter than its index says: {self.bin_bytes} bytes, "
                f"{self._idx.name} needs {needed}; copy the file again or preprocess the corpus again"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def bin_bytes(self) -> int:
        """Size of .bin."""
        return len(self._raw_tokens)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another or from a later one under the same name."""
        return {
            "bin_bytes": self.bin_bytes,
            "bin_mtime_ns": self._bin.stat().st_mtime_ns,
            "idx_sha256": hashlib.sha256(self._raw_index).hexdigest(),
        }

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Ids [length] of a sequence from token `offset` on (default: to its end), as a view of the map.

        Raises: IndexError outside the sequence.
        """
        if not 0 <= sequence < len(self):
            raise IndexError(f"{self.prefix}: sequence {sequence} of {len(self)}")
        whole = int(self.lengths[sequence])
        length = whole - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > whole:
            raise IndexError(
                f"{self.prefix}: tokens {offset} to {offset + length} of sequence {sequence} ({whole} tokens)"
            )
        start = int(self.pointers[sequence]) + offset * self.dtype.itemsize
        return np.frombuffer(self._raw_tokens, self.dtype, length, start) if length else np.empty(0, self.dtype)

    def token_range(self) -> tuple[int, int]:
        """Smallest and largest id, by reading all of .bin ((0, -1) for an empty corpus)."""
        ids = np.frombuffer(self._raw_tokens, self.dtype, self.bin_bytes // self.dtype.itemsize)
        low, high = 0, -1
        for start in range(0, len(ids), BLOCK):
            block = ids[start : start + BLOCK]
            low, high = min(low, int(block.min())), max(high, int(block.max()))
        return low, high

    def first_outside(self, vocab_size: int) -> tuple[int, int] | None:
        """(sequence, id) of the first id that is negative or not below `vocab_size`, or None."""
        ids = np.frombuffer(self._raw_tokens, self.dtype, self.bin_bytes // self.dtype.itemsize)
        for start in range(0, len(ids), BLOCK):
            block = ids[start : start + BLOCK]
            bad = (block < 0) | (block >= vocab_size)
            if bad.any():
                at = start + int(bad.argmax())
                sequence = int(np.searchsorted(self.pointers, at * self.dtype.itemsize, side="right")) - 1
                return sequence, int(ids[at])
        return None


def _map(path: Path, what: str) -> "mmap.mmap | bytes":
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise UserError(
            f"{what} {path} cannot be read: {error.strerror}; a corpus is named by its prefix and has .bin and .idx"
        ) from error
