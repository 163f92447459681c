"""Reads checkpoints from object storage: `{folder}/step_00000123/` with objects instead of files.

A step exists if its manifest does: a store has no rename, so the manifest is written last and deleted first. Objects
below the name of a step without a manifest belong to a save that is running or was killed; no reader sees them. Chunks
are read as byte ranges, and only those that are wanted.
"""

import uuid
from dataclasses import dataclass

from megascratch.checkpoint.errors import DamagedError
from megascratch.checkpoint.format.io import in_threads
from megascratch.checkpoint.format.manifest import FILE
from megascratch.runtime.faults import fault_point
from megascratch.storage.path import StoragePath
from megascratch.storage.run_folders import STEP_NAME
from megascratch.storage.store import AbsentError, Store

ASKED_AT_ONCE = 16
"""Requests at a time: a store answers each one late, but many in parallel."""


class RemoteFile:
    """An object of a step, open for reading."""

    def __init__(self, path: StoragePath):
        self.path = path
        self._store = Store(path.url)
        try:
            self.size = self._store.describe(path.url).size
        except AbsentError as error:
            raise DamagedError(f"{path} is damaged or missing: there is no such object") from error

    def read_into(self, offset: int, *parts: memoryview) -> None:
        """Fills the parts one after the other. Raises: DamagedError if the object has too few bytes, StoreError if the
        store does not answer."""
        stop = offset + sum(map(len, parts))
        if stop > self.size:
            raise DamagedError(f"{self.path} is damaged: it ends at byte {self.size:,}")
        if stop == offset:
            return
        try:
            content = memoryview(self._store.read(self.path.url, offset, stop))
        except AbsentError as error:
            raise DamagedError(
                f"{self.path} is damaged or missing: there is no such object"
            ) from error
        done = 0
        for part in parts:
            part[:] = content[done : done + len(part)]
            done += len(part)

    def close(self) -> None:
        """Has nothing to release."""


@dataclass(frozen=True)
class RemoteStep:
    """A step to read, rename or delete."""

    path: StoragePath
    threads = ASKED_AT_ONCE
    asked_at_once = ASKED_AT_ONCE
    group_bytes = 1 << 23
    """Neighbouring small chunks are read together, up to this size: each request has a high latency."""

    def open(self, name: str) -> RemoteFile:
        return RemoteFile(self.path / name)

    def is_there(self) -> bool:
        return Store(self.path.url).exists((self.path / FILE).url)

    def names(self) -> list[str]:
        """The names of everything below the name of the step."""
        return Store(self.path.url).names(self.path.url)

    def put(self, name: str, content: bytes) -> None:
        """Adds or replaces a small object of the step. Raises: StoreError."""
        Store(self.path.url).put((self.path / name).url, content)

    def set_aside(self) -> StoragePath:
        """Renames a damaged step by a copy inside the store. Returns the new address."""
        aside = self.path.with_name(f"damaged.{self.path.name}.{uuid.uuid4().hex[:6]}")
        Store(self.path.url).copy_below(self.path.url, aside.url)
        self.delete()
        return aside

    def delete(self) -> None:
        """Deletes the manifest first: without it the step no longer exists for readers. Raises: StoreError."""
        store = Store(self.path.url)
        fault_point("save.before_delete")
        store.delete((self.path / FILE).url)
        fault_point("save.mid_delete")
        store.delete_below(self.path.url)


def step_names(folder: StoragePath) -> list[str]:
    """The names of the steps that have a manifest. Raises: StoreError if the store does not answer: this must not look
    like a folder without steps, or a run would start from the beginning."""
    return [name for name, has_manifest in _known(folder) if has_manifest]


def clean(folder: StoragePath) -> None:
    """Deletes the objects of steps without a manifest, and open uploads; only for the owner of the folder."""
    store = Store(folder.url)
    for name, has_manifest in _known(folder):
        if not has_manifest:
            store.delete_below((folder / name).url)
    store.abort_uploads(f"{folder}/step_")


def _known(folder: StoragePath) -> list[tuple[str, bool]]:
    """The names of all steps, each with whether it has a manifest."""
    names = [name for name in Store(folder.url).names(folder.url) if STEP_NAME.fullmatch(name)]
    has_manifest = in_threads(
        lambda name: RemoteStep(folder / name).is_there(), names, ASKED_AT_ONCE
    )
    return list(zip(names, has_manifest, strict=True))
