"""Writes and reads tokenized corpora: the pair {prefix}.bin / {prefix}.idx, memory-mapped (Megatron's format).

`.bin` holds the ids back to back in the dtype that `.idx` names, without header or padding; `idx_format.py` describes
`.idx`.
"""

import hashlib
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, final

import numpy as np
import xxhash

from megascratch.config.errors import UserError
from megascratch.data.tokens.digests import (
    BLOCK_BYTES,
    BlockDigests,
    Digests,
    WholeFile,
    block_is_intact,
    digests_path,
    manifest_file,
    read_digests,
    whole_file,
    write_digests,
)
from megascratch.data.tokens.file_digests import NOTHING_KNOWN, KnownDigests
from megascratch.data.tokens.idx_format import (
    BLOCK,
    HEADER,
    MAGIC,
    TOKEN_DTYPES,
    VERSION,
    Index,
    broken_laws,
    dtype_code,
    read_index,
)
from megascratch.data.tokens.indices import TokenFile, read_pieces, sound_index
from megascratch.data.tokens.indices_python import NO_LIMIT
from megascratch.runtime.atomic_file import (
    explain_write_errors,
    flush_to_disk,
    fsync_folder,
    partial_path,
)


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype in which ids of this vocabulary are stored: uint16 below 65,500, else int32 (Megatron's rule)."""
    return np.dtype("uint16" if vocab_size < 65500 else "int32")


def bin_path(prefix: str | Path) -> Path:
    """Path of the ids."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Path of the index: the offset and length of each sequence."""
    return Path(f"{prefix}.idx")


@final
class TokenWriter:
    """Writes one corpus under temporary names; `finish` moves its files in place, an error removes them.

    >>> with TokenWriter("corpus", np.uint16) as writer:
    ...     writer.add_document([5, 6, 7])
    """

    def __init__(self, prefix: str | Path, dtype: Any):
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        self._code = dtype_code(self.dtype)
        if self._code is None:
            raise UserError(
                f"{prefix}: tokens cannot be stored as {self.dtype}; use {', '.join(TOKEN_DTYPES.values())}"
            )
        self.tokens = 0
        self.min_token = 0
        self.max_token = -1
        self._lengths = array("i")
        self._documents = array("q", [0])
        self._digests = BlockDigests()
        self._bin_partial = partial_path(bin_path(prefix))
        self._idx_partial = partial_path(idx_path(prefix))
        self._bin = open_for_writing(self._bin_partial)

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self._documents) - 1

    @property
    def sequences(self) -> int:
        """Sequences added so far."""
        return len(self._lengths)

    def add_document(
        self, tokens: Sequence[int] | np.ndarray, lengths: Sequence[int] | None = None
    ) -> None:
        """Appends one document: `tokens` cut into sequences of `lengths` (default: one; none if there are no tokens).

        Raises: ValueError where an id does not fit the dtype or the lengths do not add up.
        """
        ids = np.asarray(tokens)
        if lengths is None:
            lengths = [len(ids)] if len(ids) else []
        if sum(lengths) != len(ids) or any(length < 0 for length in lengths):
            raise ValueError(f"lengths {list(lengths)} do not cut a document of {len(ids)} tokens")
        if len(ids):
            self._append(ids)
        self._lengths.extend(lengths)
        self._documents.append(len(self._lengths))

    def _append(self, ids: np.ndarray) -> None:
        low = int(ids.min())
        high = int(ids.max())
        info = np.iinfo(self.dtype)
        if low < info.min or high > info.max:
            raise ValueError(
                f"ids from {low} to {high} do not fit {self.dtype} ({info.min} to {info.max})"
            )
        raw = ids.astype(self.dtype.newbyteorder("<"), copy=False).tobytes()
        self._bin.write(raw)
        self._digests.update(raw)
        self.tokens += len(ids)
        self.min_token = min(self.min_token, low)
        self.max_token = max(self.max_token, high)

    def finish(self) -> None:
        """Writes the index, moves both files to their final names, writes the digests; no reader sees half a file."""
        flush_to_disk(self._bin)
        self._bin.close()
        with open_for_writing(self._idx_partial) as idx:
            self._write_index(idx)
            flush_to_disk(idx)
        put_in_place(self._bin_partial, self._idx_partial, self.prefix, self._digests)

    def _write_index(self, idx: IO[bytes]) -> None:
        lengths = np.asarray(self._lengths, dtype="<i4")
        pointers = np.zeros(len(lengths), dtype="<i8")
        np.cumsum(lengths[:-1], out=pointers[1:], dtype=np.int64)
        pointers *= self.dtype.itemsize
        documents = np.asarray(self._documents, dtype="<i8")
        idx.write(HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(documents)))
        for part in (lengths, pointers, documents):
            idx.write(part.tobytes())

    def abort(self) -> None:
        """Removes the temporary files; files that are already in place stay."""
        self._bin.close()
        self._bin_partial.unlink(missing_ok=True)
        self._idx_partial.unlink(missing_ok=True)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif not self._bin.closed:
            self.finish()


def open_for_writing(path: Path) -> IO[bytes]:
    """Opens a new file and creates its folder. Raises: UserError where that fails."""
    with explain_write_errors(path, "; choose another output prefix"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def put_in_place(
    bin_partial: Path, idx_partial: Path, prefix: str | Path, digests: BlockDigests
) -> None:
    """Moves two complete files to the names of a corpus; a crash in between leaves no corpus, never a wrong one.

    `digests`: the checksums of the new .bin.
    """
    for path in (digests_path(prefix), manifest_file(prefix), idx_path(prefix)):
        path.unlink(missing_ok=True)  # what describes the old ids must never describe the new ones
    os.replace(bin_partial, bin_path(prefix))
    os.replace(idx_partial, idx_path(prefix))
    write_digests(prefix, digests)
    fsync_folder(bin_path(prefix).parent)


class TokenReader:
    """Reads one corpus, memory-mapped; every rule of the format is checked when it is opened.

    Attributes: `prefix` as the user gave it, `files` the prefix of its files on this machine, `file` for the C++
    functions, `lengths` int32 [S] tokens per sequence, `pointers` int64 [S] bytes, `documents` int64 [D], `dtype`,
    `digests` the recorded checksums of its files (None: none were recorded). The index and the manifest are compared
    with their digests when the corpus is opened, a block of .bin when it is first read from. `trusting`: nothing is
    compared. `known`: digests that need not be computed again.
    Raises: UserError naming the file, the rule and the numbers.
    """

    def __init__(
        self, prefix: str | Path, *, trusting: bool = False, known: KnownDigests = NOTHING_KNOWN
    ):
        self.prefix = self.files = str(prefix)
        self._known = known
        self._idx = idx_path(prefix)
        self._bin = bin_path(prefix)
        self._raw_index = open_map(self._idx, "index")
        index = read_index(self._idx, self._raw_index)
        self.dtype, self.lengths, self.pointers, self.documents = index
        self._raw_tokens = open_map(self._bin, "token file")
        if not sound_index(self._raw_index, self.bin_bytes):
            raise self._refusal(index)
        self.digests = None if trusting else self._recorded_digests()
        self._verify_recorded()
        self.file = self._token_file(NO_LIMIT)

    def _recorded_digests(self) -> Digests | None:
        return read_digests(self.files)

    def _token_file(self, limit: int) -> TokenFile:
        blocks = 0 if self.digests is None else len(self.digests.blocks)
        return TokenFile(
            bytes=np.frombuffer(self._raw_tokens, np.uint8),
            code=dtype_code(self.dtype) or 0,
            lengths=self.lengths,
            pointers=self.pointers,
            checked=np.zeros(blocks, np.uint8),
            limit=limit,
        )

    def _verify_recorded(self) -> None:
        """Compares index and manifest with .digests. Raises: UserError where they differ."""
        if self.digests is None:
            return
        if self.bin_bytes != self.digests.bin_bytes:
            raise self._damage(
                self._bin, f"it has {self.bin_bytes} bytes, {self.digests.bin_bytes} were written"
            )
        idx_digest = self._known.get(self._idx, "xxh3_128")
        if idx_digest is None:
            idx_digest = xxhash.xxh3_128_hexdigest(self._raw_index)
        if idx_digest != self.digests.idx.digest.hex():
            raise self._damage(self._idx, "its checksum differs")
        manifest = manifest_file(self.files)
        if self.digests.manifest is not None and self.digests.manifest != self._whole(manifest):
            raise self._damage(manifest, "its checksum differs")

    def _whole(self, path: Path) -> WholeFile:
        try:
            return whole_file(path)
        except OSError as error:
            raise self._damage(path, f"it cannot be read: {error.strerror}") from error

    def _damage(self, path: Path, what: str) -> UserError:
        """The error for a file that differs from .digests."""
        return UserError(
            f"{path} differs from what was written with the corpus: {what}; copy it again or preprocess the corpus "
            f"again (megascratch data validate {self.files} lists all damage; if you changed the file yourself, "
            f"megascratch data record {self.files} --overwrite)"
        )

    def _refusal(self, index: Index) -> UserError:
        """The error for the first broken rule."""
        for law in broken_laws(index):
            return UserError(
                f"{self._idx}: {law}; the file is damaged or not a token index, preprocess the corpus again"
            )
        return UserError(
            f"{self._bin} is shorter than its index says: {self.bin_bytes} bytes, "
            f"{self._idx.name} needs {index.end}; copy the file again or preprocess the corpus again"
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def bin_bytes(self) -> int:
        """Size of .bin in bytes."""
        return len(self._raw_tokens)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Identifies this corpus, also against a later one under the same name (part of the index cache's keys)."""
        idx_sha256 = self._known.get(self._idx, "sha256")
        if idx_sha256 is None:
            idx_sha256 = hashlib.sha256(self._raw_index).hexdigest()
        return {
            "bin_bytes": self.bin_bytes,
            "bin_mtime_ns": self._bin.stat().st_mtime_ns,
            "idx_sha256": idx_sha256,
        }

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Ids [length] of a sequence from token `offset` (default: to its end), as a view of the memory map.

        Raises: IndexError outside the sequence.
        """
        if not 0 <= sequence < len(self):
            raise IndexError(f"{self.prefix}: sequence {sequence} of {len(self)}")
        tokens = int(self.lengths[sequence])
        if length is None:
            length = tokens - offset
        if offset < 0 or length < 0 or offset + length > tokens:
            raise IndexError(
                f"{self.prefix}: tokens {offset} to {offset + length} of sequence {sequence} ({tokens} tokens)"
            )
        if length == 0:
            return np.empty(0, self.dtype)
        start = int(self.pointers[sequence]) + offset * self.dtype.itemsize
        self.verify_blocks(start, start + length * self.dtype.itemsize)
        return np.frombuffer(self._raw_tokens, self.dtype, length, start)

    def read(self, pieces: np.ndarray) -> np.ndarray:
        """int64: the tokens of `pieces` [n, 3] (sequence, offset, count), concatenated, read in one call.

        Raises: IndexError outside a sequence; UserError for damage, and ids outside the vocabulary (`limit_ids`).
        """
        try:
            ids = read_pieces(self.file, pieces)
            if ids is None:  # a block is read for the first time
                for sequence, offset, count in pieces.tolist():
                    self.get(sequence, offset, count)
                ids = read_pieces(self.file, pieces)
                assert ids is not None, "every block of the pieces is verified now"
        except OverflowError as error:
            raise self._outside_of(pieces) from error
        return ids

    def verify_blocks(self, start: int, stop: int) -> None:
        """Compares the blocks that hold bytes [start, stop) of .bin with their digests, each once per process.

        Raises: UserError naming the file and the bytes.
        """
        checked = self.file.checked
        if self.digests is None:
            return
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            if checked[block]:
                continue
            if not block_is_intact(self.view, self.digests, block):
                first = block * BLOCK_BYTES
                end = min(first + BLOCK_BYTES, self.bin_bytes)
                raise self._damage(self._bin, f"bytes {first:,} to {end:,} are damaged")
            checked[block] = 1

    @cached_property
    def view(self) -> memoryview:
        """The bytes of .bin, without verification."""
        return memoryview(self._raw_tokens)

    def limit_ids(self, vocab_size: int) -> None:
        """Makes `read` refuse ids that are negative or not below `vocab_size`."""
        self.file = self._token_file(vocab_size)

    def _outside_of(self, pieces: np.ndarray) -> UserError:
        """The error for the first id of some pieces that is outside the vocabulary."""
        for sequence, offset, count in pieces.tolist():
            ids = self.get(sequence, offset, count)
            for at in np.flatnonzero((ids < 0) | (ids >= self.file.limit)).tolist():
                token = int(ids[at])
                return self.outside_vocabulary(sequence, offset + at, token, token + 1)
        raise AssertionError(
            "an id was outside the vocabulary when it was read, and is not any more"
        )

    def outside_vocabulary(self, sequence: int, place: int, token: int, needed: int) -> UserError:
        """The error for token number `place` of a sequence; a vocabulary of `needed` ids would contain it."""
        document = self.document_of(sequence)
        limit = self.file.limit
        return UserError(
            f"{self.prefix}.bin: document {document}, sequence {sequence}, token {place} has id {token}, the "
            f"vocabulary has {limit} (ids 0 to {limit - 1}); use the tokenizer that made the corpus or --vocab-size "
            f"{max(needed, limit)}"
        )

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """All ids of sequences [first, stop) in order: (offset of the first id in .bin, ids as a view of the map).

        A block is as long as possible, but has at most 2^20 ids and never spans a gap between sequences.
        """
        stop = len(self) if stop is None else stop
        for start in range(first, stop, BLOCK):
            end = min(start + BLOCK, stop)
            lengths = self.lengths[start:end].astype(np.int64)
            pointers = self.pointers[start:end]
            ends = pointers + lengths * self.dtype.itemsize
            after_gaps = np.flatnonzero(pointers[1:] != ends[:-1]) + 1
            for one, other in pairwise([0, *after_gaps.tolist(), len(pointers)]):
                yield from self._stretch(int(pointers[one]), int(ends[other - 1]))

    def _stretch(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """The ids in bytes [start, stop) of .bin, in blocks: (offset, ids)."""
        step = BLOCK * self.dtype.itemsize
        for at in range(start, stop, step):
            size = min(step, stop - at) // self.dtype.itemsize
            self.verify_blocks(at, at + size * self.dtype.itemsize)
            yield at, np.frombuffer(self._raw_tokens, self.dtype, size, at)

    def token_range(self) -> tuple[int, int]:
        """Smallest and largest id, by reading all of them ((0, -1) for an empty corpus)."""
        low = 0
        high = -1
        for _, ids in self.blocks():
            low = min(low, int(ids.min()))
            high = max(high, int(ids.max()))
        return low, high

    def outside(self, vocab_size: int) -> Iterator[tuple[int, int]]:
        """(sequence, id) of every id that is negative or not below `vocab_size`."""
        for sequence, _, token in self.places_outside(vocab_size):
            yield sequence, token

    def places_outside(self, vocab_size: int) -> Iterator[tuple[int, int, int]]:
        """(sequence, place in it, id) of every id that is negative or not below `vocab_size`."""
        for start, ids in self.blocks():
            for at in np.flatnonzero((ids < 0) | (ids >= vocab_size)).tolist():
                byte = start + at * self.dtype.itemsize
                sequence = self.sequence_at(byte)
                place = (byte - int(self.pointers[sequence])) // self.dtype.itemsize
                yield sequence, place, int(ids[at])

    def sequence_at(self, byte: int) -> int:
        """The last sequence that begins at or before a byte of .bin; -1 before the first one."""
        return int(np.searchsorted(self.pointers, byte, side="right")) - 1

    def document_of(self, sequence: int) -> int:
        """The document of a sequence."""
        return int(np.searchsorted(self.documents, sequence, side="right")) - 1


def open_map(path: Path, what: str) -> "mmap.mmap | bytes":
    """Maps a file into memory. Raises: UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise UserError(
            f"{what} {path} cannot be read: {error.strerror}; a corpus is named by its prefix and has .bin and .idx"
        ) from error
