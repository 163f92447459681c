"""A place in, what reads and writes steps there out: `local.py` for a path of this machine, `remote.py` for an address.

Every other module of the room names places and asks here; what is given back has the same methods for both.
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
from megascratch.storage.path import Place
from megascratch.storage.store import Store

File = LocalFile | RemoteFile
Step = LocalStep | RemoteStep
Draft = LocalStepWriter | RemoteStepWriter
AnyLease = Lease | RemoteLease


def step_at(place: Place) -> Step:
    """A step to read, to move or to delete."""
    return LocalStep(place) if isinstance(place, Path) else RemoteStep(place)


def step_names(folder: Place) -> list[str]:
    """Of the steps in a folder, in no order. Raises: StoreError where a store does not answer."""
    return local.step_names(folder) if isinstance(folder, Path) else remote.step_names(folder)


def is_folder(place: Place) -> bool:
    """Raises: StoreError."""
    return place.is_dir() if isinstance(place, Path) else bool(Store(place.url).names(place.url))


def begin(final: Place, inside: Place, nbytes: int) -> Draft:
    """Begins to write a step of `nbytes` bytes.

    Args:
        inside: the writer's `lease.inside`, or the folder itself where nobody else could write.

    Raises: UserError where `final` is already there, DiskError where there is no room, StoreError.
    """
    if isinstance(final, Path):
        assert isinstance(inside, Path)
        return LocalStepWriter.begin(final, inside, nbytes)
    assert not isinstance(inside, Path)
    return RemoteStepWriter.begin(final, inside)


def acquire(folder: Place) -> AnyLease:
    """Claims a folder. Raises: UserError, naming the holder, where another writer is alive; OSError, StoreError."""
    return Lease.acquire(folder) if isinstance(folder, Path) else RemoteLease.acquire(folder)


@contextmanager
def alone(folder: Place) -> Iterator[Place]:
    """Where a program that writes one step, and is no run, begins it. In a store it holds the folder meanwhile, since
    a run that comes would delete what has no manifest yet. Raises: as `acquire`."""
    if isinstance(folder, Path):
        yield folder
        return
    lease = RemoteLease.acquire(folder)
    try:
        yield lease.inside
    finally:
        lease.release()


def require_room(folder: Place, nbytes: int) -> None:
    """Raises: DiskError where so many bytes do not fit; a store has room."""
    if isinstance(folder, Path):
        local.require_room(folder, nbytes)
