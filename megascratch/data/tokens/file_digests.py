"""Digests of files that one process of a machine has computed for all of them.

To compare corpora, whole indices and parts of the ids are read: gigabytes, which a machine should read once and not
once per rank. A rank uses a digest of another one only for the same file in the same state: device, inode, size and
the times of the last changes must be equal. These numbers have a meaning on one machine only.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class FileState(NamedTuple):
    """What a process sees of a file without reading it."""

    device: int
    inode: int
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds of the last change of the content."""
    changed: int
    """Nanoseconds of the last change of content, name or rights."""

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Raises: OSError."""
        seen = path.stat()
        return cls(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


class KnownDigests:
    """Digests by the state of a file.

    Args:
        entries: the state of each file, and its digests by name.
    """

    def __init__(self, entries: Iterable[tuple[Iterable[int], Mapping[str, Any]]] = ()):
        self._by_state = {tuple(state): digests for state, digests in entries}

    def get(self, path: Path, name: str) -> Any:
        """The digest of that name; None if it is not known of this file in its present state."""
        if not self._by_state:
            return None
        try:
            state = FileState.of(path)
        except OSError:
            return None
        return self._by_state.get(state, {}).get(name)


NOTHING_KNOWN = KnownDigests()
