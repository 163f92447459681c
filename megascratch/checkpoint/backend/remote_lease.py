"""Lets only one run at a time save into a folder of an object store: a lease with a fencing number.

    {folder}/.writer/00000007.json    the owner: host, process, start time, run id of the launcher; 'null': released
    {folder}/.writer/00000007.beat    a counter that the owner's thread increments every BEAT_SECONDS

The next number is claimed by creating its object, which succeeds for one claimant only if the store supports
conditional writes (`Store.create`); the highest number is the owner's. A commit checks the lease before and after it
writes the manifest: remote_writer.py says what this guarantees. When an owner counts as gone: see lease_owner.py.
"""

import threading
from contextlib import suppress

from megascratch.checkpoint.backend import remote
from megascratch.checkpoint.backend.lease_owner import LeaseOwner, require_gone
from megascratch.checkpoint.errors import LeaseLostError
from megascratch.config.errors import UserError
from megascratch.storage.path import StoragePath
from megascratch.storage.store import AbsentError, Store

BEAT_SECONDS = 5.0
"""Each heartbeat is a paid request: about ten US cents a day."""
STALE_SECONDS = 60.0
HOME = ".writer"
RECORD = ".json"
BEAT = ".beat"
RELEASED = b"null"


class RemoteLease:
    """The right to write into a folder, until `release` or until another writer takes over."""

    def __init__(self, folder: StoragePath, number: int):
        self.folder = folder
        self.number = number
        self.inside = folder / HOME / f"{number:08d}{RECORD}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: StoragePath) -> "RemoteLease":
        """Claims the folder. Deletes what earlier writers left: objects of steps without a manifest, and open uploads.

        Raises: UserError, naming the owner, if another writer is alive; StoreError.
        """
        home = folder / HOME
        store = Store(folder.url)
        me = LeaseOwner.this_process()
        while True:
            numbers = _numbers(home)
            for number in numbers:
                _require_gone(folder, number, me)
            number = max([0, *numbers]) + 1
            url = (home / f"{number:08d}{RECORD}").url
            if not store.create(url, me.to_text().encode()):
                continue
            now = _numbers(home)
            if max(now) > number:  # another claimant saw the folder while it changed hands
                store.delete(url)
                continue
            lease = cls(folder, number)
            try:
                left: list[str] = []  # by earlier writers
                for old in now:
                    if old < number:
                        left += [(home / f"{old:08d}{RECORD}").url, (home / f"{old:08d}{BEAT}").url]
                store.delete(*left)
                remote.clean(folder)
            except BaseException:
                lease.release()
                raise
            return lease

    def require(self) -> None:
        """Raises: LeaseLostError if another writer has taken over, StoreError."""
        require(self.inside)

    def release(self) -> None:
        """Others may claim the folder at once; the number stays in use."""
        self._over.set()
        self._thread.join()
        with suppress(UserError):
            self.require()
            Store(self.folder.url).put(self.inside.url, RELEASED)

    def _beat(self) -> None:
        count = 0
        url = self.inside.url.removesuffix(RECORD) + BEAT
        while not self._over.wait(BEAT_SECONDS):
            count += 1
            with suppress(UserError):  # the next beat is the next attempt
                Store(url, waits=()).put(url, str(count).encode())


def require(inside: StoragePath) -> None:
    """Checks that the lease at `inside` is still the newest. A folder without a lease has a single writer by contract.

    Raises: LeaseLostError if there is a higher number or the record was deleted; StoreError.
    """
    if inside.parent.name != HOME:
        return
    folder = inside.parent.parent
    mine = int(inside.name.removesuffix(RECORD))
    numbers = _numbers(inside.parent)
    if mine != max(numbers, default=0):
        holder = _holder(folder, max(numbers)) if numbers else None
        raise LeaseLostError(
            f"another writer has taken {folder} over: {holder or 'it has ended since'}"
        )


def _numbers(home: StoragePath) -> list[int]:
    """The numbers of the leases that have a record, in rising order."""
    numbers = []
    for name in Store(home.url).names(home.url):
        number = name.removesuffix(RECORD)
        if number != name and number.isdigit():
            numbers.append(int(number))
    return sorted(numbers)


def _require_gone(folder: StoragePath, number: int, me: LeaseOwner) -> None:
    require_gone(
        folder,
        _holder(folder, number),
        me,
        lambda: _beat_of(folder, number),
        BEAT_SECONDS,
        STALE_SECONDS,
    )


def _holder(folder: StoragePath, number: int) -> LeaseOwner | None:
    """The owner; None if it has released the folder or its record is not valid."""
    try:
        return LeaseOwner.from_text(_content(folder, f"{number:08d}{RECORD}"))
    except AbsentError:
        return None


def _beat_of(folder: StoragePath, number: int) -> str | None:
    """The heartbeat counter, '' before the first one; None if the lease was released or its record deleted."""
    try:
        if _content(folder, f"{number:08d}{RECORD}") == RELEASED:
            return None
    except AbsentError:
        return None
    try:
        return _content(folder, f"{number:08d}{BEAT}").decode(errors="replace")
    except AbsentError:
        return ""


def _content(folder: StoragePath, name: str) -> bytes:
    return Store(folder.url).content((folder / HOME / name).url)
