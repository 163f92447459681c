"""A step that is being written to object storage: every rank sends its own file, the first one puts the manifest last.

No file system is shared between nodes. Each writing has a token of its own, which stands in the names of its files, so
two writers never write the same object but one: the manifest. That one is created only where there is none, which the
store decides (S3's If-None-Match, and the like of Google and Azure), so a step has one writer, whole.

What a store cannot do is to check a lease and create an object in one call, as a rename out of a folder does on a file
system. A writer therefore looks at its lease right before the manifest and right after it, and takes the manifest back
when it was taken over meanwhile. A writer that is stopped between the two looks, taken over, and never wakes up again
leaves a step that is whole, or that names files which the next writer has deleted: then it is damaged, and readers pass
it over. A store that knows no writes under a condition leaves one more gap, between two writers' looks for a manifest.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from megascratch.checkpoint.backend import remote_lease
from megascratch.checkpoint.format.errors import DiskError, LeaseLostError
from megascratch.checkpoint.format.file_format import FileLayout
from megascratch.checkpoint.format.io import checksum
from megascratch.checkpoint.format.manifest import FILE, DataFile, parse
from megascratch.config.errors import UserError
from megascratch.runtime.faults import fault_point
from megascratch.storage.path import StoragePath
from megascratch.storage.store import Store, StoreError


@dataclass(frozen=True)
class RemoteStepWriter:
    """Every rank has the same record.

    Args:
        final: the step.
        inside: the writer's lease; the folder of steps itself where nobody else could write.
        token: of this writing.
    """

    final: StoragePath
    inside: StoragePath
    token: str

    @classmethod
    def begin(cls, final: StoragePath, inside: StoragePath) -> "RemoteStepWriter":
        """Raises: UserError where `final` is already there, StoreError."""
        if Store(final.url).exists((final / FILE).url):
            raise _already_there(final)
        return cls(final, inside, uuid.uuid4().hex[:12])

    def file_name(self, number: int) -> str:
        return f"{number:05d}.{self.token}.safetensors"

    def write(self, name: str, layout: FileLayout, raw: Callable[[int], memoryview]) -> tuple[DataFile, list[str]]:
        """Sends one file; its record, and the checksum of each chunk in order.

        Args:
            raw: the bytes of a chunk by its number in the layout.

        Raises: DiskError where the store refuses to the end.
        """
        sums = list[str]()

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
        return DataFile(layout.size, len(layout.header), checksum(layout.header)), sums

    def commit(self, manifest: bytes) -> None:
        """The step is there, whole, when this returns. Raises: LeaseLostError, UserError where another writer was
        first, DiskError."""
        try:
            self._require_files(manifest)
            text = bytearray(manifest)
            fault_point("save.before_commit", text)
            remote_lease.require(self.inside)
            if not Store(self.final.url).create((self.final / FILE).url, bytes(text)):
                raise _already_there(self.final)
        except StoreError as error:
            raise DiskError(str(error)) from error
        fault_point("save.after_commit")
        self._require_still()

    def discard(self) -> None:
        """Deletes what this writing has sent, unless it is a step by now: an answer to `commit` may have been lost."""
        store = Store(self.final.url)
        with suppress(StoreError):
            names = store.names(self.final.url)
            if FILE in names and self.token.encode() in store.content((self.final / FILE).url):
                return
            store.delete(*((self.final / name).url for name in names if f".{self.token}." in name))

    def _require_files(self, manifest: bytes) -> None:
        """Raises: UserError unless what the ranks have sent lies here, whole; LeaseLostError where it is gone because
        somebody has taken over."""
        there = Store(self.final.url).sizes(self.final.url)
        for name, file in parse(manifest).files.items():
            if there.get(name) != file.bytes:
                remote_lease.require(self.inside)
                raise UserError(
                    f"{self.final / name} is not where the first rank looks for it: "
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
            pass  # nobody is known to have taken over


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
    return UserError(f"{final} is already there and checkpoints are never overwritten: delete it or save elsewhere")
