"""Reads a corpus in object storage (`data_path: s3://bucket/prefix`) through a block cache on this machine.

fsspec connects to the store (s3fs for s3://, an optional extra; any scheme that fsspec knows works the same). The cache
is under --data-cache-path, in a folder named by the objects' addresses, sizes and versions (etags):

    corpus.idx, .json, .digests   complete copies, each moved to its name when downloaded
    corpus.bin                    full size, but sparse: a block is stored when it is first read
    corpus.blocks                 a byte for each block of 8 MiB: 1 when its bytes are on the disk

So the cache never marks half a block as present, several processes share it, and a corpus that was uploaded again has
another folder. Disk space is needed for every block that is read. Where the corpus has .digests, the copies are
compared with them as a local corpus is: what the store, the network or this disk changed is refused.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.digests import BLOCK_BYTES as DIGEST_BLOCK_BYTES
from megascratch.data.tokens.digests import Digests, digests_path
from megascratch.data.tokens.file_digests import NOTHING_KNOWN, KnownDigests
from megascratch.data.tokens.idx_format import Index, broken_laws
from megascratch.data.tokens.index_cache import locked, writable
from megascratch.data.tokens.missing import require_corpus
from megascratch.data.tokens.token_files import TokenReader
from megascratch.runtime.atomic_file import atomic_file
from megascratch.storage.store import Object, Store

BLOCK_BYTES = 8 << 20


def is_remote(prefix: str | Path) -> bool:
    """Whether a prefix is an address such as s3://bucket/corpus."""
    return "://" in str(prefix)


def open_corpus(
    prefix: str, cache: str | Path | None, known: KnownDigests = NOTHING_KNOWN
) -> TokenReader:
    """Opens a corpus on this machine, or one in object storage through the cache folder `cache`.

    Args:
        known: digests of files on this machine that need not be computed again.

    Raises: UserError where it cannot be read, or is remote and there is no cache folder.
    """
    if not is_remote(prefix):
        require_corpus(prefix)
        return TokenReader(prefix, known=known)
    if cache is None:
        raise UserError(
            f"{prefix} is read through a cache on this machine: give --data-cache-path, a folder with enough space"
        )
    return RemoteReader(prefix, Path(cache))


class RemoteReader(TokenReader):
    """A `TokenReader` whose .bin is in object storage; a block is fetched when one of its ids is first read."""

    def __init__(self, prefix: str, cache: Path):
        self._copy = BlockCache(prefix, cache)
        super().__init__(self._copy.prefix)
        self.prefix = prefix

    @property
    def identity(self) -> dict[str, Any]:
        """Identifies the corpus by its objects' versions: the same on every machine, whatever is cached."""
        return {"objects": self._copy.versions}

    def verify_blocks(self, start: int, stop: int) -> None:
        """Fetches the blocks that hold bytes [start, stop), then compares them with the digests."""
        # a digest needs its whole block
        first_byte = start // DIGEST_BLOCK_BYTES * DIGEST_BLOCK_BYTES
        last_byte = -(-stop // DIGEST_BLOCK_BYTES) * DIGEST_BLOCK_BYTES
        if self.digests is None:
            self._copy.ensure(start, stop)
        else:
            self._copy.ensure(first_byte, min(last_byte, self.bin_bytes))
        super().verify_blocks(start, stop)

    def _recorded_digests(self) -> Digests | None:
        try:
            return super()._recorded_digests()
        except UserError as error:
            # not with the remedy of a local corpus: recording a damaged copy again would make it valid
            raise self._damage(digests_path(self.files), "its own checksum differs") from error

    def _refusal(self, index: Index) -> UserError:
        broken = next(broken_laws(index), "its .bin is shorter than it says")
        return self._damage(self._idx, broken)

    def _damage(self, path: Path, what: str) -> UserError:
        url = self._copy.url + path.suffix
        return UserError(
            f"{url} differs from what was written with the corpus: {what}; remove its copy {path.parent} and start "
            "again, and if that does not help, upload the corpus again"
        )

    def read(self, pieces: np.ndarray) -> np.ndarray:
        for sequence, offset, count in pieces.tolist():
            self.get(sequence, offset, count)
        return super().read(pieces)


class BlockCache:
    """The cache folder of one remote corpus; `prefix` is its local prefix. Its .bin is valid where `ensure` was called.

    Raises: UserError for objects that are missing or unreadable, a missing library, a cache that is full.
    """

    def __init__(self, url: str, cache: Path):
        self._store = Store(url)
        if self._store.exists(f"{url}_loss_mask.idx"):
            raise UserError(
                f"{url} has a loss mask, which can only be read from this machine: copy its files here"
            )
        self.url = url
        self._bin = self._store.describe(f"{url}.bin")
        idx = self._store.describe(f"{url}.idx")
        self.versions = [list(self._bin), list(idx)]
        described = []
        for address in (f"{url}.json", f"{url}.digests"):
            if self._store.exists(address):
                described.append(self._store.describe(address))
        key = json.dumps([*self.versions, *described])
        self._home = cache / "objects" / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.prefix = str(self._home / "corpus")
        blocks = -(-self._bin.size // BLOCK_BYTES)
        with locked(self._home), writable(self._home):
            self._download(idx, "corpus.idx")
            for item in described:
                self._download(item, f"corpus{Path(item.url).suffix}")
            self._create_sparse("corpus.bin", self._bin.size)
            self._create_sparse("corpus.blocks", max(blocks, 1))
        self._marks = (self._home / "corpus.blocks").open("r+b")
        self._present = np.memmap(self._marks, np.uint8, "r+")
        self._ids = os.open(self._home / "corpus.bin", os.O_RDWR)
        self._threads = threading.Lock()

    def ensure(self, start: int, stop: int) -> None:
        """Fetches bytes [start, stop) of .bin, unless they are cached. Raises: UserError where that fails."""
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            if self._present[block]:
                continue
            with self._alone(block):
                if not self._present[block]:  # another process may have fetched it meanwhile
                    self._fetch(block)

    @contextmanager
    def _alone(self, block: int) -> Iterator[None]:
        """Lets one thread of one process fetch a block; the kernel frees the lock of a process that dies."""
        with self._threads:
            fcntl.lockf(self._marks, fcntl.LOCK_EX, 1, block)
            try:
                yield
            finally:
                fcntl.lockf(self._marks, fcntl.LOCK_UN, 1, block)

    def _fetch(self, block: int) -> None:
        start = block * BLOCK_BYTES
        content = self._read(self._bin, start)
        with writable(self._home):
            os.pwrite(self._ids, content, start)
            os.fdatasync(self._ids)
        self._present[block] = 1

    def _read(self, item: Object, start: int) -> bytes:
        """Downloads a block. Raises: UserError, also where the object was replaced."""

        def check() -> None:
            if self._store.describe(item.url) != item:
                raise UserError(
                    f"{item.url} was replaced while it was read: start again to read the new one"
                )

        stop = min(start + BLOCK_BYTES, item.size)
        return self._store.read(item.url, start, stop, check)

    def _download(self, item: Object, name: str) -> None:
        """Makes a complete copy of an object, unless there is one."""
        path = self._home / name
        if path.exists():
            return
        with atomic_file(path) as file:
            for start in range(0, item.size, BLOCK_BYTES):
                file.write(self._read(item, start))

    def _create_sparse(self, name: str, size: int) -> None:
        """Creates a file of zeros that takes no space yet, unless it exists."""
        path = self._home / name
        if path.exists():
            return
        with atomic_file(path) as file:
            file.truncate(size)
