"""Lets only one run at a time save into a folder: a lease with a fencing number, enforced by the rename of a commit.

    {folder}/.writer.1796169610123/holder.json    the owner: host, process, start time, run id of the launcher
    {folder}/.writer.1796169610123/beat           a counter that the owner's thread increments every BEAT_SECONDS
    {folder}/.writer.1796169610123/.step_*.partial    the steps that it is writing

A step is committed by renaming it out of its writer's folder. A new owner first renames that folder away, so a writer
that was suspended and wakes up later has nothing left to rename: the check and the commit are one system call. A number
is claimed by renaming a prepared folder to its name, which succeeds for one claimant only, since a folder that is not
empty is never replaced. It is the time of the claim in milliseconds, so that no number is used twice although a writer
that ends leaves nothing behind.

When an owner counts as gone: see lease_owner.py.
"""

import os
import shutil
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from megascratch.checkpoint.backend.lease_owner import SAVE_ELSEWHERE, LeaseOwner, require_gone
from megascratch.checkpoint.backend.local import lost
from megascratch.runtime.atomic_file import fsync_folder

BEAT_SECONDS = 0.5
STALE_SECONDS = 20.0
PREFIX = ".writer."
AWAY = ".writer-away."


class Lease:
    """The right to write into a folder, until `release` or until another writer takes over."""

    def __init__(self, folder: Path, number: int):
        self.folder = folder
        self.number = number
        self.inside = folder / f"{PREFIX}{number:08d}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: str | Path, elsewhere: str = SAVE_ELSEWHERE) -> "Lease":
        """Claims the folder and creates it if needed. Deletes what a writer that is gone has left.

        Args:
            elsewhere: what the user can do if another writer is alive, for the message.

        Raises: UserError, naming the owner, if another writer is alive; OSError if the folder cannot be created.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        me = LeaseOwner.this_process()
        while True:
            numbers = _numbers(folder)
            for number in numbers:
                _require_gone(folder, number, me, elsewhere)
                _take_away(folder, number)
            now = time.time_ns() // 1_000_000
            number = max([now, *[number + 1 for number in numbers]])
            if not _claim(folder, number, me):
                continue
            if max(_numbers(folder)) > number:
                # another claimant saw the folder while it changed hands
                _take_away(folder, number)
                continue
            _clean(folder)
            return cls(folder, number)

    def require(self) -> None:
        """Raises: LeaseLostError if another writer has taken over, or the folder was deleted."""
        if not self.inside.exists():
            raise lost(self.folder, _newest_holder(self.folder))

    def release(self) -> None:
        """Others may claim the folder at once."""
        self._over.set()
        self._thread.join()
        _take_away(self.folder, self.number)
        with suppress(OSError):
            (self.folder / f"{AWAY}{self.number:08d}").rmdir()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError):  # a full disk must not end the thread
                (self.inside / "beat").write_text(str(count))


def _numbers(folder: Path) -> list[int]:
    """The numbers of the writers' folders, in rising order."""
    names = [path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")]
    return sorted(int(name) for name in names if name.isdigit())


def _claim(folder: Path, number: int, me: LeaseOwner) -> bool:
    prepared = folder / f".writer-new.{uuid.uuid4().hex[:12]}"
    prepared.mkdir()
    try:
        (prepared / "holder.json").write_text(me.to_text())
        (prepared / "beat").write_text("0")
        os.rename(prepared, folder / f"{PREFIX}{number:08d}")
        fsync_folder(folder)
    except OSError:
        shutil.rmtree(prepared, ignore_errors=True)
        if (folder / f"{PREFIX}{number:08d}").exists():
            return False
        raise
    return True


def _take_away(folder: Path, number: int) -> None:
    """Moves a writer's folder away, which fences the writer, and deletes its content."""
    away = folder / f"{AWAY}{number:08d}"
    with suppress(OSError):
        os.rename(folder / f"{PREFIX}{number:08d}", away)
    _empty(away)


def _empty(folder: Path) -> None:
    if not folder.exists():
        return
    for path in folder.glob("*"):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _clean(folder: Path) -> None:
    """Deletes what earlier writers left; the number just claimed is higher than all of theirs."""
    for path in (*folder.glob(f"{AWAY}*"), *folder.glob(".*.deleting")):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".writer-new.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _require_gone(folder: Path, number: int, me: LeaseOwner, elsewhere: str) -> None:
    inside = folder / f"{PREFIX}{number:08d}"
    require_gone(
        folder,
        _holder(inside),
        me,
        lambda: _beat_of(inside),
        BEAT_SECONDS,
        STALE_SECONDS,
        elsewhere,
    )


def _holder(inside: Path) -> LeaseOwner | None:
    """The owner; None if the folder is gone or has no valid record."""
    try:
        return LeaseOwner.from_text((inside / "holder.json").read_bytes())
    except OSError:
        return None


def _newest_holder(folder: Path) -> str:
    numbers = _numbers(folder)
    if numbers:
        holder = _holder(folder / f"{PREFIX}{numbers[-1]:08d}")
        if holder is not None:
            return str(holder)
    return "it has ended since"


def _beat_of(inside: Path) -> str | None:
    try:
        return (inside / "beat").read_bytes().decode(errors="replace")
    except OSError:
        return None
