"""Caches index arrays on disk: built once per machine, then memory-mapped by every process.

There is one folder per key, named by the sha256 of everything that determines the arrays (`key.json` in it has the key
in readable form). The folder gets its name by one rename, when complete. The first process builds under a file lock,
the others wait for it; the kernel frees the lock of a process that dies, so no process waits forever.

    key.json     {"arrays": {name: xxh3_128 of {name}.npy}, "key": ..., "digest": xxh3_128 of the other two}

All digests are compared when arrays are opened; damaged arrays are built again, with a notice.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megascratch.config.errors import UserError
from megascratch.config.verbosity import note
from megascratch.data.tokens.digests import whole_file
from megascratch.runtime.atomic_file import explain_write_errors, flush_to_disk, partial_path
from megascratch.runtime.faults import fault_point

Arrays = dict[str, np.ndarray]
ABANDONED_SECONDS = 86_400.0
HOME_DIGITS = 32


@dataclass(frozen=True)
class BlockwiseArray:
    """An array that is generated block by block while it is stored, so that it is never in memory at once."""

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Iterator[np.ndarray]

    def whole(self) -> np.ndarray:
        """The complete array, in memory."""
        empty = np.empty((0, *self.shape[1:]), self.dtype)
        return np.concatenate([empty, *self.blocks])


def in_memory(arrays: Mapping[str, np.ndarray | BlockwiseArray]) -> Arrays:
    """The arrays in memory, without a cache."""
    whole = {}
    for name, array in arrays.items():
        whole[name] = array.whole() if isinstance(array, BlockwiseArray) else array
    return whole


def load_or_build(
    folder: Path,
    key: Mapping[str, Any],
    build: Callable[[], Mapping[str, np.ndarray | BlockwiseArray]],
) -> Arrays:
    """The arrays of `key`, from the cache; they are built and stored if they are missing or damaged.

    Raises: UserError where the cache cannot be written.
    """
    text = json.dumps(key, sort_keys=True)
    home = _home(folder, text)
    arrays = _load(home)
    if arrays is not None:
        return arrays
    with locked(folder):
        arrays = _load(home)
        if arrays is None:
            fault_point("index.build")
            if home.exists():
                note(f"megascratch: notice: the index cache {home} is damaged: it is built again")
            _store(home, text, build())
            arrays = _load(home)
    if arrays is None:
        raise UserError(
            f"the index cache {home} cannot be read back; choose another place with --data-cache-path"
        )
    return arrays


def digest_of(folder: Path, key: Mapping[str, Any]) -> str:
    """Digest of the stored arrays of a key, without reading them again; "none" where there are none."""
    record = _record(_home(folder, json.dumps(key, sort_keys=True)))
    return _own_digest(record["arrays"], None) if record else "none"


def damaged_caches(folder: Path) -> Iterator[Path]:
    """Every damaged entry of a cache folder."""
    for home in sorted(folder.glob("[0-9a-f]" * HOME_DIGITS)):
        if home.is_dir() and _load(home) is None:
            yield home


def _home(folder: Path, key: str) -> Path:
    return folder / hashlib.sha256(key.encode()).hexdigest()[:HOME_DIGITS]


def _load(home: Path) -> Arrays | None:
    """The stored arrays; None where they are missing or damaged."""
    record = _record(home)
    if record is None:
        return None
    arrays = {}
    try:
        for name, digest in record["arrays"].items():
            path = home / f"{name}.npy"
            if whole_file(path).digest.hex() != digest:
                return None
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return arrays


def _record(home: Path) -> dict[str, Any] | None:
    """The content of key.json; None where it is missing, damaged or of an older version."""
    try:
        record = json.loads((home / "key.json").read_bytes())
        same = record["digest"] == _own_digest(record["arrays"], record["key"])
        plain = all(Path(name).name == name for name in record["arrays"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if same and plain and isinstance(record["arrays"], dict) else None


def _own_digest(arrays: Mapping[str, str], key: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps([arrays, key], sort_keys=True).encode())


def _store(home: Path, key: str, arrays: Mapping[str, np.ndarray | BlockwiseArray]) -> None:
    """Writes the arrays in parallel: one is generated while another is written to the disk."""
    partial = partial_path(home)
    with writable(home.parent):
        for remains in (home, partial, *_left_by_killed(home)):
            shutil.rmtree(remains, ignore_errors=True)
        partial.mkdir()
        try:
            with ThreadPoolExecutor(max(len(arrays), 1)) as pool:
                digests = list(
                    pool.map(_write, [partial / f"{name}.npy" for name in arrays], arrays.values())
                )
            names = dict(zip(arrays, digests, strict=True))
            words = json.loads(key)
            record = {"arrays": names, "key": words, "digest": _own_digest(names, words)}
            (partial / "key.json").write_text(json.dumps(record, indent=1))
            fault_point("index.commit")
            _move_in_place(partial, home)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _left_by_killed(home: Path) -> list[Path]:
    """Unfinished folders of the same arrays, older than ABANDONED_SECONDS; a younger one may belong to a running
    process, on a file system without locks."""
    return [
        path
        for path in home.parent.glob(f"{home.name}.*.partial")
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    ]


def _write(path: Path, array: np.ndarray | BlockwiseArray) -> str:
    """Stores an array and returns the digest of its file."""
    fault_point("index.write")
    with path.open("wb") as file:
        if isinstance(array, BlockwiseArray):
            descr = np.lib.format.dtype_to_descr(array.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in array.blocks:
                block.tofile(file)
        else:
            np.save(file, array, allow_pickle=False)
        flush_to_disk(file)
    return whole_file(path).digest.hex()


def _move_in_place(partial: Path, home: Path) -> None:
    try:
        os.rename(partial, home)
    except OSError:
        if _load(home) is None:
            raise
        # without locks another process may have stored the same arrays first
        shutil.rmtree(partial)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates the folder and lets one process at a time continue."""
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    with lock:
        with suppress(OSError):
            # a file system without locks: every process builds, the rename lets one of them win
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def writable(folder: Path) -> AbstractContextManager[None]:
    """Turns an error of the file system into a UserError that names the cache."""
    return explain_write_errors(
        f"the cache {folder}", "; choose another place with --data-cache-path"
    )
