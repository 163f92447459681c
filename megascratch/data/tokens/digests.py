"""Checksums of a corpus ({prefix}.digests): they detect any damage to its .bin, .idx and .json.

The file, little endian, for a .bin of n blocks of BLOCK_BYTES (the last one may be shorter):

    offset     size   content
    0          8      magic "MSDIGEST"
    8          4      u32 version, 1
    12         4      u32 bytes of a block
    16         8      u64 bytes of .bin
    24         8      u64 bytes of .idx
    32         8      u64 bytes of .json; 2^64 - 1: there was none
    40         16     xxh3_128 of .idx, canonical (big endian) form
    56         16     xxh3_128 of .json; zeros: there was none
    72         8 n    u64 xxh3_64 of each block of .bin
    72 + 8 n   16     xxh3_128 of everything before, canonical form

A reader verifies the index and the manifest when it opens a corpus, and a block of ids when it first reads from it.
A disk reads 32 KiB ahead for one page anyway, and the checksums take 1/4096 of the size of the ids.

The format of .bin and .idx stays Megatron's. A corpus without this file was made elsewhere: `megascratch data record`
writes it. A loss mask is a pair of .bin and .idx as well, and has its own file.
"""

import struct
from array import array
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import xxhash

from megascratch.config.errors import UserError
from megascratch.runtime.atomic_file import explain_write_errors, write_atomically

MAGIC = b"MSDIGEST"
VERSION = 1
BLOCK_BYTES = 1 << 15
HEADER = struct.Struct("<8sIIQQQ16s16s")
OWN_BYTES = 16
NONE = (1 << 64) - 1
NO_DIGEST = bytes(16)
READ_BYTES = 1 << 18  # small enough to stay in the processor's cache


class WholeFile(NamedTuple):
    """Size and digest of a file."""

    size: int
    """Bytes."""
    digest: bytes
    """xxh3_128."""


class Digests(NamedTuple):
    """Sizes and checksums of the files of a corpus when they were written."""

    bin_bytes: int
    blocks: np.ndarray
    """uint64 [n]: xxh3_64 of each block of .bin."""
    idx: WholeFile
    manifest: WholeFile | None
    own: bytes
    """xxh3_128 of everything before it in the file: equal for equal corpora, whatever their names."""


def digests_path(prefix: str | Path) -> Path:
    """Path of the checksums of a corpus."""
    return Path(f"{prefix}.digests")


def manifest_file(prefix: str | Path) -> Path:
    """Path of the manifest of a corpus (`manifest.py`), which the digests cover too."""
    return Path(f"{prefix}.json")


class BlockDigests:
    """Computes the checksums of the blocks of .bin while it is written."""

    def __init__(self) -> None:
        self.bytes = 0
        self._full = array("Q")
        self._open = xxhash.xxh3_64()

    def update(self, raw: Any) -> None:
        """Adds the next bytes: any contiguous buffer."""
        rest = memoryview(raw).cast("B")
        while rest:
            room = BLOCK_BYTES - self.bytes % BLOCK_BYTES
            part = rest[:room]
            rest = rest[room:]
            self.bytes += len(part)
            if len(part) == BLOCK_BYTES:
                self._full.append(xxhash.xxh3_64_intdigest(part))
                continue
            self._open.update(part)
            if len(part) == room:
                self._close()

    def _close(self) -> None:
        self._full.append(self._open.intdigest())
        self._open.reset()

    def blocks(self) -> np.ndarray:
        """uint64 [n]: the checksums, after all bytes were added."""
        blocks = np.array(self._full, dtype="<u8")
        if self.bytes % BLOCK_BYTES == 0:
            return blocks
        return np.append(blocks, np.uint64(self._open.intdigest()))


def blocks_of(file: IO[bytes], size: int) -> BlockDigests:
    """The checksums of the first `size` bytes of a file, read from its start."""
    digests = BlockDigests()
    file.seek(0)
    while digests.bytes < size:
        raw = file.read(min(READ_BYTES, size - digests.bytes))
        if not raw:
            break
        digests.update(raw)
    return digests


def whole_file(path: Path) -> WholeFile:
    """Size and digest of a file. Raises: OSError."""
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("rb") as file:
        while raw := file.read(READ_BYTES):
            digest.update(raw)
            size += len(raw)
    return WholeFile(size, digest.digest())


def encoded(
    bin_bytes: int, blocks: np.ndarray, idx: WholeFile, manifest: WholeFile | None
) -> bytes:
    """The bytes of a .digests file."""
    json_bytes, json_digest = manifest or (NONE, NO_DIGEST)
    header = HEADER.pack(
        MAGIC, VERSION, BLOCK_BYTES, bin_bytes, idx.size, json_bytes, idx.digest, json_digest
    )
    content = header + blocks.astype("<u8").tobytes()
    return content + xxhash.xxh3_128_digest(content)


def write_digests(prefix: str | Path, blocks: BlockDigests) -> None:
    """Records the current files of a corpus, atomically; `blocks` are the checksums of its .bin.

    Raises: UserError where a file cannot be read or the record cannot be written.
    """
    _write(prefix, blocks.bytes, blocks.blocks(), whole_file(Path(f"{prefix}.idx")))


def with_manifest(prefix: str | Path, digests: Digests) -> None:
    """Records the current manifest of a corpus; the checksums of .bin and .idx are kept."""
    _write(prefix, digests.bin_bytes, digests.blocks, digests.idx)


def _write(prefix: str | Path, bin_bytes: int, blocks: np.ndarray, idx: WholeFile) -> None:
    path = digests_path(prefix)
    manifest = manifest_file(prefix)
    with explain_write_errors(path):
        raw = encoded(bin_bytes, blocks, idx, whole_file(manifest) if manifest.exists() else None)
        write_atomically(path, raw)


def read_digests(prefix: str | Path) -> Digests | None:
    """The record of a corpus; None where there is none.

    Raises: UserError where it is damaged or cannot be read.
    """
    path = digests_path(prefix)
    try:
        if path.stat().st_size < HEADER.size + OWN_BYTES:
            raise _damaged(path)
        raw = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    own = raw[-OWN_BYTES:].tobytes()
    if xxhash.xxh3_128_digest(raw[:-OWN_BYTES].data) != own:
        raise _damaged(path)
    magic, version, block, bin_bytes, idx_bytes, json_bytes, idx, manifest = HEADER.unpack(
        raw[: HEADER.size].tobytes()
    )
    if (magic, version, block) != (MAGIC, VERSION, BLOCK_BYTES):
        raise UserError(
            f"{path} has version {version} and blocks of {block} bytes; version {VERSION} and {BLOCK_BYTES} can be "
            f"read: record the corpus again with megascratch data record {prefix} --overwrite"
        )
    blocks = raw[HEADER.size : -OWN_BYTES]
    if len(blocks) != 8 * -(-bin_bytes // BLOCK_BYTES):
        raise _damaged(path)
    return Digests(
        bin_bytes=bin_bytes,
        blocks=blocks.view("<u8"),
        idx=WholeFile(idx_bytes, idx),
        manifest=None if json_bytes == NONE else WholeFile(json_bytes, manifest),
        own=own,
    )


def _damaged(path: Path) -> UserError:
    prefix = str(path).removesuffix(".digests")
    return UserError(
        f"{path} is damaged: its own checksum differs; copy it again, or, if the corpus is known to be undamaged, "
        f"megascratch data record {prefix} --overwrite"
    )


def damaged_blocks(raw: Any, digests: Digests) -> list[int]:
    """Numbers of the blocks of .bin that differ from what was recorded."""
    view = memoryview(raw)
    damaged = []
    for block in range(len(digests.blocks)):
        if not block_is_intact(view, digests, block):
            damaged.append(block)
    return damaged


def block_is_intact(view: memoryview, digests: Digests, block: int) -> bool:
    """Whether a block of .bin equals what was recorded."""
    start = block * BLOCK_BYTES
    content = view[start : start + BLOCK_BYTES]
    return xxhash.xxh3_64_intdigest(content) == digests.blocks[block]
