"""Reads and writes checkpoints on a local or shared file system: written in a private folder, committed by one rename.

A reader therefore sees a complete step or none.
"""

import os
import shutil
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megascratch.checkpoint.backend.direct_writer import DirectWriter
from megascratch.checkpoint.errors import DamagedError, DiskError, LeaseLostError
from megascratch.checkpoint.format.chunk_table import DataFile
from megascratch.checkpoint.format.file_format import FileLayout
from megascratch.checkpoint.format.io import THREADS, checksum, read_all
from megascratch.checkpoint.format.manifest import FILE, StepContents
from megascratch.config.errors import UserError
from megascratch.runtime.atomic_file import flush_to_disk, fsync_folder, write_atomically
from megascratch.runtime.faults import fault_point


class LocalFile:
    """A regular file of a step folder, open for reading. Links, pipes and devices are refused, because the file names
    come from a manifest that is untrusted."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedError(f"{path} is damaged or missing: {error.strerror}") from error
        status = os.fstat(self.handle)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise DamagedError(f"{path} is not a regular file")

    def read_into(self, offset: int, *parts: memoryview) -> None:
        """Fills the parts one after the other. Raises: DamagedError if the file has too few bytes or cannot be read."""
        try:
            got = read_all(self.handle, parts, offset)
        except OSError as error:
            raise DamagedError(
                f"{self.path} is damaged: bytes from {offset:,} cannot be read: {error.strerror}"
            ) from error
        if got != sum(map(len, parts)):
            raise DamagedError(f"{self.path} is damaged: it ends at byte {offset + got:,}")

    def close(self) -> None:
        os.close(self.handle)


@dataclass(frozen=True)
class LocalStep:
    """A step folder to read, rename or delete."""

    path: Path
    threads = THREADS
    asked_at_once = 1
    group_bytes = 1 << 20
    """Neighbouring small chunks are read together, up to this size, which still fits in the processor's cache."""

    def open(self, name: str) -> LocalFile:
        return LocalFile(self.path / name)

    def is_there(self) -> bool:
        """Whether it has a manifest, readable or not."""
        return os.path.lexists(self.path / FILE)

    def names(self) -> list[str]:
        """The names of everything in the folder."""
        return [path.name for path in self.path.iterdir()]

    def put(self, name: str, content: bytes) -> None:
        """Adds or replaces a small file of the step, atomically. Raises: OSError."""
        # Not in the step, whose readers list its files; not by PID, because another machine may write the same file.
        partial = self.path.with_name(f".{self.path.name}.{name}.{uuid.uuid4().hex[:12]}.partial")
        write_atomically(self.path / name, content, partial)

    def set_aside(self) -> Path:
        """Renames a damaged step. Returns the new path."""
        aside = self.path.with_name(f"damaged.{self.path.name}.{uuid.uuid4().hex[:6]}")
        os.rename(self.path, aside)
        return aside

    def delete(self) -> None:
        """Renames the step to a hidden name, then deletes it, so that no reader finds half of it. Raises: OSError."""
        away = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:12]}.deleting")
        fault_point("save.before_delete")
        os.rename(self.path, away)
        fsync_folder(self.path.parent)
        fault_point("save.mid_delete")
        shutil.rmtree(away)


@dataclass(frozen=True)
class LocalStepWriter:
    """A step folder that is being written; every rank has the same record.

    `private` is inside the folder of the writer's lease (see local_lease.py). A new owner moves that folder away, so
    that the rename of a suspended writer that wakes up later fails.
    """

    private: Path
    final: Path

    @classmethod
    def begin(cls, final: Path, inside: Path, nbytes: int) -> "LocalStepWriter":
        """Creates the private folder.

        Args:
            inside: its parent; on the same file system as `final`.
            nbytes: how many bytes will be written.

        Raises: UserError if `final` already exists or its folder cannot be created, LeaseLostError if `inside` was
            moved away, DiskError if there is not enough space.
        """
        _require_new(final)
        if inside != final.parent and not inside.exists():
            raise lost(final.parent)  # do not create a folder again that was deleted
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{final.parent} cannot be created: {error.strerror}") from error
        require_room(final.parent, nbytes)
        draft = cls(inside / f".{final.name}.{uuid.uuid4().hex[:12]}.partial", final)
        try:
            draft.private.mkdir()
        except FileNotFoundError as error:
            raise lost(final.parent) from error
        return draft

    def file_name(self, number: int) -> str:
        """The name of the file that a rank writes. The folder is private, so the rank number makes it unique."""
        return f"{number:05d}.safetensors"

    @property
    def table_name(self) -> str:
        """The name of the file with the rows of all files and chunks."""
        return "chunks.bin"

    def write(
        self, name: str, layout: FileLayout, raw: Callable[[int], memoryview]
    ) -> tuple[DataFile, list[int]]:
        """Writes one file and syncs it to the disk. Returns its record and the checksum of each chunk in order.

        Args:
            raw: maps the number of a chunk in the layout to its bytes.

        Raises: DiskError.
        """
        path = self.private / name
        sums: list[int] = []
        try:
            fault_point("save.before_write")
            with DirectWriter(path) as stream:
                stream.put(memoryview(layout.header))
                for group in layout.groups():
                    fault_point("save.write")
                    for index in group:
                        part = raw(index)
                        sums.append(checksum(part))
                        stream.put(part)
                stream.finish()
            fault_point("save.after_write", path)
        except OSError as error:
            raise self._refused(path, error) from error
        return DataFile(name, layout.size, len(layout.header), checksum(layout.header)), sums

    def commit(self, contents: StepContents) -> None:
        """Makes the step visible to readers, complete. Raises: LeaseLostError, DiskError."""
        try:
            for name, content in (
                (self.table_name, contents.table),
                (FILE, contents.manifest),
            ):
                with (self.private / name).open("xb") as file:
                    file.write(content)
                    flush_to_disk(file)
            fsync_folder(self.private)
            _require_new(self.final)
            fault_point("save.before_commit", self.private / FILE)
            os.rename(self.private, self.final)
            fault_point("save.after_commit")
            fsync_folder(self.final.parent)
        except OSError as error:
            raise self._refused(self.final, error) from error

    def discard(self) -> None:
        shutil.rmtree(self.private, ignore_errors=True)

    def _refused(self, path: Path, error: OSError) -> UserError:
        if isinstance(error, FileNotFoundError) and not self.private.exists():
            if not self.private.parent.exists():
                return LeaseLostError(f"{self.final} was not written: {lost(self.final.parent)}")
            return UserError(
                f"{self.final.parent} is not the same folder on all ranks: save to a shared file system"
            )
        return DiskError(f"{path} cannot be written: {error.strerror}")


def lost(folder: Path, newest_holder: str = "") -> LeaseLostError:
    """The error that says why this process no longer owns the lease of the folder.

    Args:
        newest_holder: describes the new owner, if known.
    """
    if not folder.exists():
        return LeaseLostError(
            f"{folder} is gone: it was deleted or moved while this run saved into it"
        )
    if newest_holder:
        return LeaseLostError(f"another writer has taken {folder} over: {newest_holder}")
    return LeaseLostError(f"another writer has taken {folder} over")


def require_room(folder: Path, nbytes: int) -> None:
    """Raises: DiskError if the file system has not so many bytes of free space."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise DiskError(
            f"a checkpoint needs {nbytes:,} bytes, {folder} has {free:,} bytes of free space: make room, "
            "save elsewhere, or keep fewer checkpoints (--keep-last-n-checkpoints)"
        )


def _require_new(final: Path) -> None:
    if os.path.lexists(final):
        raise UserError(
            f"{final} already exists, and checkpoints are never overwritten: move it or save elsewhere"
        )
