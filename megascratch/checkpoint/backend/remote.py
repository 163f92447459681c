"""A step in object storage, to read: `{folder}/step_00000123/`, objects in the place of files.

A step is there when its manifest is: nothing is ever renamed in a store, so the manifest comes last and goes first.
What lies below a step's name without a manifest is a save under way, or what a killed one left; no reader sees it.
Chunks are read by ranges of bytes, and no more of them than are wanted.
"""

import uuid
from dataclasses import dataclass

from megascratch.checkpoint.format.errors import DamagedError
from megascratch.checkpoint.format.io import in_threads
from megascratch.checkpoint.format.manifest import FILE, STEP_NAME
from megascratch.runtime.faults import fault_point
from megascratch.storage.path import StoragePath
from megascratch.storage.store import AbsentError, Store

ASKED_AT_ONCE = 16
"""A store answers late and many at once."""


class RemoteFile:
    """An object of a step, open for reading."""

    def __init__(self, path: StoragePath):
        self.path, self._store = path, Store(path.url)
        try:
            self.size = self._store.describe(path.url).size
        except AbsentError as error:
            raise DamagedError(f"{path} is damaged or missing: there is no such object") from error

    def read_into(self, offset: int, *parts: memoryview) -> None:
        """Fills the parts, one behind the other. Raises: DamagedError where there are fewer bytes, StoreError where
        the store does not answer."""
        stop = offset + sum(map(len, parts))
        if stop > self.size:
            raise DamagedError(f"{self.path} is damaged: it ends at byte {self.size:,}")
        try:
            content = memoryview(self._store.read(self.path.url, offset, stop) if stop > offset else b"")
        except AbsentError as error:
            raise DamagedError(f"{self.path} is damaged or missing: there is no such object") from error
        for part in parts:
            part[:], content = content[: len(part)], content[len(part) :]

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class RemoteStep:
    """A step to read, to move or to delete."""

    path: StoragePath
    threads = asked_at_once = ASKED_AT_ONCE
    group_bytes = 1 << 23
    """Neighbouring small chunks are read together, up to this: an answer takes its time, however small it is."""

    def open(self, name: str) -> RemoteFile:
        return RemoteFile(self.path / name)

    def is_there(self) -> bool:
        return Store(self.path.url).exists((self.path / FILE).url)

    def names(self) -> list[str]:
        """Of everything below the step's name."""
        return Store(self.path.url).names(self.path.url)

    def put(self, name: str, content: bytes) -> None:
        """Adds a small object to the step, or replaces it. Raises: StoreError."""
        Store(self.path.url).put((self.path / name).url, content)

    def set_aside(self) -> StoragePath:
        """Gives a damaged step another name, copying it inside of the store. Its new address."""
        aside = self.path.with_name(f"damaged.{self.path.name}.{uuid.uuid4().hex[:6]}")
        Store(self.path.url).copy_below(self.path.url, aside.url)
        self.delete()
        return aside

    def delete(self) -> None:
        """The manifest first: with it the step goes, whatever happens behind. Raises: StoreError."""
        store = Store(self.path.url)
        fault_point("save.before_delete")
        store.delete((self.path / FILE).url)
        fault_point("save.mid_delete")
        store.delete_below(self.path.url)


def step_names(folder: StoragePath) -> list[str]:
    """Of the steps that are there. Raises: StoreError where the store does not answer: that is not the same as no
    steps, and a run must not begin anew for it."""
    return [name for name, there in _known(folder) if there]


def clean(folder: StoragePath) -> None:
    """Deletes what is below the names of steps that are not there; for the only writer of a folder."""
    store = Store(folder.url)
    for name, there in _known(folder):
        if not there:
            store.delete_below((folder / name).url)
    store.abort_uploads(f"{folder}/step_")


def _known(folder: StoragePath) -> list[tuple[str, bool]]:
    names = [name for name in Store(folder.url).names(folder.url) if STEP_NAME.fullmatch(name)]
    return list(zip(names, in_threads(lambda n: RemoteStep(folder / n).is_there(), names, ASKED_AT_ONCE), strict=True))
