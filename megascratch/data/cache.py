"""Arrays that are built once per machine: a key and a function in, memory-mapped arrays out.

One folder per key, named by the sha256 of everything that shapes the arrays (`key.json` inside says it in words).
It appears under its name by one rename, when complete. The first process builds under a file lock, the others wait
for it; the kernel frees the lock of a process that dies, so nobody waits forever.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megascratch.config.errors import UserError
from megascratch.faults import fault_point

Arrays = dict[str, np.ndarray]
ABANDONED_SECONDS = 86_400.0


@dataclass(frozen=True)
class Blocks:
    """An array that is made piece by piece while it is stored, so that it never lies in memory as a whole."""

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Iterator[np.ndarray]

    def whole(self) -> np.ndarray:
        """The array in memory."""
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.blocks])


def in_memory(arrays: Mapping[str, np.ndarray | Blocks]) -> Arrays:
    """The same arrays without a cache."""
    return {name: array.whole() if isinstance(array, Blocks) else array for name, array in arrays.items()}


def built_once(folder: Path, key: Mapping[str, Any], build: Callable[[], Mapping[str, np.ndarray | Blocks]]) -> Arrays:
    """The arrays of `key`, read from the cache or built into it.

    Raises: UserError where the cache cannot be written.
    """
    text = json.dumps(key, sort_keys=True)
    home = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
    arrays = _load(home)
    if arrays is not None:
        return arrays
    with locked(folder):
        arrays = _load(home)
        if arrays is None:
            fault_point("index.build")
            _store(home, text, build())
            arrays = _load(home)
    if arrays is None:
        raise UserError(f"the index cache {home} cannot be read back; choose another place with --data-cache-path")
    return arrays


def _load(home: Path) -> Arrays | None:
    """None where there is nothing, or nothing whole (a copy that was cut short): it is built again then."""
    try:
        names = json.loads((home / "key.json").read_text())["arrays"]
        if any(Path(name).name != name for name in names):
            raise ValueError("a name that leaves the folder")
        return {name: np.load(home / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        return None


def _store(home: Path, key: str, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
    """Writes the arrays side by side: one is still being made while another goes to the disk."""
    partial = home.with_name(f"{home.name}.{os.getpid()}.partial")
    with writable(home.parent):
        for remains in (home, partial, *_left_by_killed(home)):
            shutil.rmtree(remains, ignore_errors=True)
        partial.mkdir()
        try:
            with ThreadPoolExecutor(max(len(arrays), 1)) as pool:
                list(pool.map(_write, [partial / f"{name}.npy" for name in arrays], arrays.values()))
            (partial / "key.json").write_text(json.dumps({"arrays": list(arrays), "key": json.loads(key)}, indent=1))
            fault_point("index.commit")
            _move_in_place(partial, home)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _left_by_killed(home: Path) -> list[Path]:
    """Folders of the same arrays that nobody has touched for long; a younger one may be a process's without locks."""
    return [path for path in home.parent.glob(f"{home.name}.*.partial")
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS]  # fmt: skip


def _write(path: Path, array: np.ndarray | Blocks) -> None:
    fault_point("index.write")
    with path.open("wb") as file:
        if isinstance(array, Blocks):
            descr = np.lib.format.dtype_to_descr(array.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in array.blocks:
                block.tofile(file)
        else:
            np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _move_in_place(partial: Path, home: Path) -> None:
    try:
        os.rename(partial, home)
    except OSError:
        if _load(home) is None:
            raise
        shutil.rmtree(partial)  # no lock, and another process was faster with the same arrays


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder; one process at a time goes on."""
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    with lock:
        with suppress(OSError):  # a file system without locks: every process builds, the rename lets one of them win
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """An error of the file system becomes a UserError that names the cache."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be written: {error.strerror}; choose another place with --data-cache-path"
        ) from error
