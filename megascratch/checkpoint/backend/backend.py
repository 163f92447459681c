"""Selects the storage backend of a checkpoint folder: `local.py` for a path, `remote.py` for an object-store address.

The other modules of the room call these functions; the objects that they return have the same methods for both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megascratch.checkpoint.backend import local, remote
from megascratch.checkpoint.backend.local import LocalFile, LocalStep, LocalStepWriter
from megascratch.checkpoint.backend.local_lease import Lease
from megascratch.checkpoint.backend.remote import RemoteFile, RemoteStep
from megascratch.checkpoint.backend.remote_lease import RemoteLease
from megascratch.checkpoint.backend.remote_writer import RemoteStepWriter
from megascratch.storage import run_folders
from megascratch.storage.path import Place
from megascratch.storage.store import Store

File = LocalFile | RemoteFile
Step = LocalStep | RemoteStep
Draft = LocalStepWriter | RemoteStepWriter
AnyLease = Lease | RemoteLease


def step_at(place: Place) -> Step:
    """The step at `place`, to read, rename or delete."""
    return LocalStep(place) if isinstance(place, Path) else RemoteStep(place)


def step_names(folder: Place) -> list[str]:
    """The names of the steps in a folder, unsorted. Raises: StoreError if a store does not answer."""
    if isinstance(folder, Path):
        return run_folders.step_names(folder)
    return remote.step_names(folder)


def is_folder(place: Place) -> bool:
    """Whether `place` is a folder; in a store: whether any object is below it. Raises: StoreError."""
    return place.is_dir() if isinstance(place, Path) else bool(Store(place.url).names(place.url))


def begin(final: Place, inside: Place, nbytes: int) -> Draft:
    """Begins to write a step of `nbytes` bytes.

    Args:
        inside: the writer's `lease.inside`, or the folder itself if no other process could write.

    Raises: UserError if `final` already exists, DiskError if there is not enough space, StoreError.
    """
    if isinstance(final, Path):
        assert isinstance(inside, Path)
        return LocalStepWriter.begin(final, inside, nbytes)
    assert not isinstance(inside, Path)
    return RemoteStepWriter.begin(final, inside)


def acquire(folder: Place) -> AnyLease:
    """Claims a folder. Raises: UserError, naming the owner, if another writer is alive; OSError, StoreError."""
    return Lease.acquire(folder) if isinstance(folder, Path) else RemoteLease.acquire(folder)


@contextmanager
def alone(folder: Place) -> Iterator[Place]:
    """The folder in which a tool that writes a single step, outside of a run, begins it. In a store the tool holds a
    lease meanwhile, because a run that starts would delete files without a manifest. Raises: as `acquire`."""
    if isinstance(folder, Path):
        yield folder
        return
    lease = RemoteLease.acquire(folder)
    try:
        yield lease.inside
    finally:
        lease.release()


def require_room(folder: Place, nbytes: int) -> None:
    """Raises: DiskError if so many bytes do not fit on the disk; a store always has room."""
    if isinstance(folder, Path):
        local.require_room(folder, nbytes)
