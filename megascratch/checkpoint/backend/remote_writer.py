"""Writes a checkpoint to object storage: every rank uploads its own file, and the first rank writes the manifest last.

The nodes share no file system. Each save has a unique token in the names of its files, so the manifest is the only
object that two writers could both write. It is created only if there is none, which the store decides (If-None-Match in
S3, and its equivalents at Google and Azure), so all files of a step come from one writer.

A store cannot check a lease and create an object in one call, as a rename out of a folder does on a file system. A
writer therefore checks its lease right before and right after it creates the manifest, and deletes the manifest if
another writer has taken over in between. A writer that is suspended between the two checks, loses its lease and never
wakes up again leaves a step that is complete, or one that names files which the new owner has deleted: then it is
damaged, and readers skip it. A store without conditional writes leaves one more gap, between the checks of two writers
for an existing manifest.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from megascratch.checkpoint.backend import remote_lease
from megascratch.checkpoint.errors import DiskError, LeaseLostError
from megascratch.checkpoint.format.chunk_table import DataFile
from megascratch.checkpoint.format.file_format import FileLayout
from megascratch.checkpoint.format.io import checksum
from megascratch.checkpoint.format.manifest import FILE, StepContents
from megascratch.config.errors import UserError
from megascratch.runtime.faults import fault_point
from megascratch.storage.path import StoragePath
from megascratch.storage.store import Store, StoreError


@dataclass(frozen=True)
class RemoteStepWriter:
    """Every rank has the same record.

    Args:
        final: the step.
        inside: the writer's lease; the folder of steps itself if no other process could write.
        token: unique for this save.
    """

    final: StoragePath
    inside: StoragePath
    token: str

    @classmethod
    def begin(cls, final: StoragePath, inside: StoragePath) -> "RemoteStepWriter":
        """Begins a step. Raises: UserError if `final` already exists, StoreError."""
        if Store(final.url).exists((final / FILE).url):
            raise _already_there(final)
        return cls(final, inside, uuid.uuid4().hex[:12])

    def file_name(self, number: int) -> str:
        return f"{number:05d}.{self.token}.safetensors"

    @property
    def table_name(self) -> str:
        """The name of the object with the rows of all files and chunks."""
        return f"chunks.{self.token}.bin"

    def write(
        self, name: str, layout: FileLayout, raw: Callable[[int], memoryview]
    ) -> tuple[DataFile, list[int]]:
        """Uploads one file. Returns its record and the checksum of each chunk in order.

        Args:
            raw: maps the number of a chunk in the layout to its bytes.

        Raises: DiskError if the store still refuses after all retries.
        """
        sums: list[int] = []

        def content() -> Iterator[memoryview]:
            sums.clear()
            yield memoryview(layout.header)
            for group in layout.groups():
                fault_point("save.write")
                for index in group:
                    part = raw(index)
                    sums.append(checksum(part))
                    yield part

        url = (self.final / name).url
        try:
            fault_point("save.before_write")
            Store(url).upload(url, layout.size, content)
            fault_point("save.after_write", _Sent(url))
        except StoreError as error:
            raise DiskError(str(error)) from error
        return DataFile(name, layout.size, len(layout.header), checksum(layout.header)), sums

    def commit(self, contents: StepContents) -> None:
        """Makes the step visible to readers, complete. Raises: LeaseLostError, UserError if another writer was first,
        DiskError."""
        try:
            self._require_files(contents.files)
            table = (self.final / self.table_name).url
            Store(table).put(table, contents.table)
            text = bytearray(contents.manifest)
            fault_point("save.before_commit", text)
            remote_lease.require(self.inside)
            if not Store(self.final.url).create((self.final / FILE).url, bytes(text)):
                raise _already_there(self.final)
        except StoreError as error:
            raise DiskError(str(error)) from error
        fault_point("save.after_commit")
        self._require_still()

    def discard(self) -> None:
        """Deletes the files of this save, unless the commit has succeeded: the store's answer may have been lost."""
        store = Store(self.final.url)
        with suppress(StoreError):
            names = store.names(self.final.url)
            if FILE in names and self.token.encode() in store.content((self.final / FILE).url):
                return
            store.delete(*((self.final / name).url for name in names if f".{self.token}." in name))

    def _require_files(self, files: list[DataFile]) -> None:
        """Raises: UserError unless the files of all ranks are in this store, complete; LeaseLostError if they are gone
        because another writer has taken over."""
        there = Store(self.final.url).sizes(self.final.url)
        for file in files:
            if there.get(file.name) != file.bytes:
                remote_lease.require(self.inside)
                raise UserError(
                    f"the first rank does not find {self.final / file.name}: "
                    f"{self.final.parent} must be the same store on all ranks"
                )

    def _require_still(self) -> None:
        try:
            remote_lease.require(self.inside)
        except LeaseLostError:
            with suppress(StoreError):
                Store(self.final.url).delete((self.final / FILE).url)
            raise
        except StoreError:
            pass  # no other writer is known to have taken over


@dataclass(frozen=True)
class _Sent:
    """An object that a fault point may damage."""

    url: str

    def flip_a_bit(self) -> None:
        store = Store(self.url)
        content = bytearray(store.content(self.url))
        content[len(content) // 2] ^= 1
        store.put(self.url, bytes(content))


def _already_there(final: StoragePath) -> UserError:
    return UserError(
        f"{final} already exists, and checkpoints are never overwritten: delete it or save elsewhere"
    )
