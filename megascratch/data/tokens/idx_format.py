"""Reads and validates the .idx file of a corpus: Megatron's MMIDIDX format.

The format is little endian. With S sequences and D - 1 documents (a document is a run of
sequences, usually one):

    offset        size   content
    0             9      magic "MMIDIDX" and two zero bytes
    9             8      u64 version, 1
    17            1      u8 dtype code of the ids in .bin (`DTYPES`)
    18            8      u64 S
    26            8      u64 D
    34            4 S    i32 length of each sequence, in tokens
    34 +  4 S     8 S    i64 offset of each sequence in .bin, in bytes
    34 + 12 S     8 D    i64 first sequence of each document, then S; begins with 0
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megascratch.config.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float64",
    7: "float32",
    8: "uint16",
}
TOKEN_DTYPES = {code: name for code, name in DTYPES.items() if "float" not in name}
BLOCK = 1 << 20  # entries checked together, so that a check of 10^8 sequences needs little memory


def dtype_code(dtype: np.dtype) -> int | None:
    """The header's code for a dtype of token ids; None: ids cannot be stored in this dtype."""
    for code, name in TOKEN_DTYPES.items():
        if name == dtype.name:
            return code
    return None


class Index(NamedTuple):
    """The arrays of an .idx file, as views of its bytes."""

    dtype: np.dtype
    """Dtype of the ids in .bin."""
    lengths: np.ndarray
    """int32 [S]: tokens of each sequence."""
    pointers: np.ndarray
    """int64 [S]: byte offset of each sequence in .bin."""
    documents: np.ndarray
    """int64 [D]: first sequence of each document, then S."""

    @property
    def end(self) -> int:
        """Byte of .bin after the last sequence."""
        if not len(self.lengths):
            return 0
        return int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize


def read_index(path: Path, raw: "mmap.mmap | bytes") -> Index:
    """The arrays of an .idx file, after its header and its size were checked.

    Raises: UserError naming the file, the rule and the numbers.
    """
    dtype, sequences, entries = _read_header(path, raw)
    pointers_at = HEADER.size + 4 * sequences
    documents_at = pointers_at + 8 * sequences
    return Index(
        dtype=dtype,
        lengths=np.frombuffer(raw, "<i4", sequences, HEADER.size),
        pointers=np.frombuffer(raw, "<i8", sequences, pointers_at),
        documents=np.frombuffer(raw, "<i8", entries, documents_at),
    )


def _read_header(path: Path, raw: "mmap.mmap | bytes") -> tuple[np.dtype, int, int]:
    """The dtype of the ids, S and D."""
    begin = raw[: len(MAGIC)]
    if begin != MAGIC[: len(raw)]:
        raise UserError(
            f"{path} is not a token index: it begins with {begin!r}, expected {MAGIC!r}"
        )
    if len(raw) < HEADER.size:
        raise UserError(
            f"{path} is truncated: {len(raw)} bytes, the header alone has {HEADER.size}; preprocess again"
        )
    _, version, code, sequences, entries = HEADER.unpack(raw[: HEADER.size])
    if version != VERSION:
        raise UserError(f"{path} has version {version}; version {VERSION} can be read")
    if code not in TOKEN_DTYPES:
        raise UserError(f"{path} has dtype code {code}; token ids have one of {TOKEN_DTYPES}")
    wanted = HEADER.size + 12 * sequences + 8 * entries
    if len(raw) != wanted or entries < 1:
        kind = "truncated" if len(raw) < wanted else "longer than its header says"
        raise UserError(
            f"{path} is {kind}: {len(raw)} bytes, {sequences} sequences and {entries} document entries need {wanted}; "
            f"preprocess the corpus again"
        )
    return np.dtype(TOKEN_DTYPES[code]).newbyteorder("<"), sequences, entries


def broken_laws(index: Index) -> Iterator[str]:
    """A message for each document and sequence that breaks a rule, documents first; nothing for a valid index."""
    yield from _broken_documents(index.documents, len(index.lengths))
    yield from _broken_sequences(index)


def _broken_documents(documents: np.ndarray, sequences: int) -> Iterator[str]:
    first = int(documents[0])
    last = int(documents[-1])
    if first != 0 or last != sequences:
        yield f"documents must run from sequence 0 to {sequences}, they run from {first} to {last}"
    for start in range(0, len(documents), BLOCK):
        steps = np.diff(documents[start : start + BLOCK + 1])
        for at in np.flatnonzero(steps < 0).tolist():
            yield f"document {start + at} ends before it begins"


def _broken_sequences(index: Index) -> Iterator[str]:
    """Checks that sequences have no negative length, do not overlap and start at a multiple of the token size."""
    size = index.dtype.itemsize
    end = 0
    for start in range(0, len(index.lengths), BLOCK):
        lengths = index.lengths[start : start + BLOCK].astype(np.int64)
        pointers = index.pointers[start : start + BLOCK]
        ends = pointers + lengths * size
        previous_ends = np.concatenate([[end], ends[:-1]])
        broken = {
            "has a negative length": lengths < 0,
            "begins before the previous one ends": pointers < previous_ends,
            f"does not begin on a whole {index.dtype} token": pointers % size != 0,
        }
        for law, bad in broken.items():
            for at in np.flatnonzero(bad).tolist():
                numbers = (
                    f"length {lengths[at]}, byte {pointers[at]}, expected >= {previous_ends[at]}"
                )
                yield f"sequence {start + at} {law} ({numbers})"
        end = int(ends[-1])
