"""A corpus in object storage in, a folder on this machine that reads like it out: `data_path: s3://bucket/prefix`.

fsspec speaks to the store (s3fs for s3://, an optional extra; any scheme that fsspec knows works the same). Under
--data-cache-path, in a folder named by the objects' addresses, sizes and versions (etags):

    corpus.idx, corpus.json   whole, each moved to its name when complete
    corpus.bin                of full size, but sparse: it fills block by block, as blocks are first read
    corpus.blocks             a byte for each block of 8 MiB: 1 when its bytes are on the disk

So the cache never holds half a block under the mark of a whole one, several processes share it, and a corpus that was
uploaded again is another folder. Room is needed for every block that is read.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.data.tokens.index_cache import locked, writable
from megascratch.data.tokens.token_files import TokenReader
from megascratch.storage.store import Object, Store

BLOCK_BYTES = 8 << 20


def is_remote(prefix: str | Path) -> bool:
    """Whether a prefix is an address such as s3://bucket/corpus."""
    return "://" in str(prefix)


def open_corpus(prefix: str, cache: str | Path | None) -> TokenReader:
    """A corpus on this machine or in object storage, then through the cache folder `cache`.

    Raises: UserError where it cannot be read, or is remote and there is no cache folder.
    """
    if not is_remote(prefix):
        return TokenReader(prefix)
    if cache is None:
        raise UserError(f"{prefix} is read through a cache on this machine: give --data-cache-path, a folder with room")
    return RemoteReader(prefix, Path(cache))


class RemoteReader(TokenReader):
    """A `TokenReader` whose .bin lies in object storage; a block is fetched when one of its ids is first asked for."""

    def __init__(self, prefix: str, cache: Path):
        self._copy = BlockCache(prefix, cache)
        super().__init__(self._copy.prefix)
        self.prefix = prefix

    @property
    def identity(self) -> dict[str, Any]:
        """By the objects' versions: the same on every machine, whatever of it is cached."""
        return {"objects": self._copy.versions}

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        ids = super().get(sequence, offset, length)
        start = int(self.pointers[sequence]) + offset * self.dtype.itemsize
        self._copy.ensure(start, start + ids.nbytes)
        return ids

    def read(self, pieces: np.ndarray) -> np.ndarray:
        for sequence, offset, count in pieces.tolist():
            self.get(sequence, offset, count)
        return super().read(pieces)

    def _stretch(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        for at, ids in super()._stretch(start, stop):
            self._copy.ensure(at, at + ids.nbytes)
            yield at, ids


class BlockCache:
    """The folder of one remote corpus; `prefix` names it as a local corpus, whose .bin is whole where `ensure` was.

    Raises: UserError for objects that are missing or unreadable, a library that is missing, a cache without room.
    """

    def __init__(self, url: str, cache: Path):
        self._store = Store(url)
        if self._store.exists(f"{url}_loss_mask.idx"):
            raise UserError(f"{url} has a loss mask, which is read on this machine alone: copy its files here")
        self._bin = self._store.describe(f"{url}.bin")
        idx = self._store.describe(f"{url}.idx")
        self.versions = [list(self._bin), list(idx)]
        self._home = cache / "objects" / hashlib.sha256(json.dumps(self.versions).encode()).hexdigest()[:32]
        self.prefix = str(self._home / "corpus")
        blocks = -(-self._bin.size // BLOCK_BYTES)
        with locked(self._home), writable(self._home):
            self._create("corpus.idx", lambda path: self._download(idx, path))
            if self._store.exists(f"{url}.json"):
                self._create("corpus.json", lambda path: self._download(self._store.describe(f"{url}.json"), path))
            self._create("corpus.bin", lambda path: _allot(path, self._bin.size))
            self._create("corpus.blocks", lambda path: _allot(path, max(blocks, 1)))
        self._marks = (self._home / "corpus.blocks").open("r+b")
        self._present = np.memmap(self._marks, np.uint8, "r+")
        self._ids = os.open(self._home / "corpus.bin", os.O_RDWR)
        self._threads = threading.Lock()

    def ensure(self, start: int, stop: int) -> None:
        """Bytes [start, stop) of .bin are on the disk afterwards. Raises: UserError where they cannot be."""
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            if not self._present[block]:
                with self._alone(block):
                    if not self._present[block]:
                        self._fetch(block)

    @contextmanager
    def _alone(self, block: int) -> Iterator[None]:
        """One thread of one process fetches a block; the kernel frees the lock of a process that dies."""
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
        """A block. Raises: UserError, also where the object is another one by now."""

        def check() -> None:
            if self._store.describe(item.url) != item:
                raise UserError(f"{item.url} was replaced while it is read: start again to read the new one")

        return self._store.read(item.url, start, min(start + BLOCK_BYTES, item.size), check)

    def _create(self, name: str, make: Callable[[Path], None]) -> None:
        path = self._home / name
        if not path.exists():
            partial = path.with_name(f"{name}.{os.getpid()}.partial")
            make(partial)
            os.replace(partial, path)

    def _download(self, item: Object, path: Path) -> None:
        with path.open("wb") as file:
            for start in range(0, item.size, BLOCK_BYTES):
                file.write(self._read(item, start))
            file.flush()
            os.fsync(file.fileno())


def _allot(path: Path, size: int) -> None:
    """A file of zeros that takes no room yet."""
    with path.open("wb") as file:
        file.truncate(size)
