"""Paths of folders and files, local or in object storage: turns the user's text into a `Path`, or into a `StoragePath`
for an address such as s3://bucket/run.

`pathlib` would reduce the two slashes after the scheme to one, so an address is a class of its own, with the same
methods for names as a Path. Code that only builds names need not distinguish the two; code that opens files checks
`isinstance(place, Path)`.
"""

from dataclasses import dataclass
from pathlib import Path

from megascratch.config.errors import UserError

LOCAL_SCHEMES = ("file", "local")


@dataclass(frozen=True, order=True)
class StoragePath:
    """A folder or an object in object storage; `url` has no slash at its end."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "StoragePath":
        return StoragePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "StoragePath":
        return StoragePath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> "StoragePath":
        return self.parent / name

    def resolve(self) -> "StoragePath":
        """Returns itself, because object stores have no links."""
        return self


Place = Path | StoragePath


def storage_path(where: str | Place) -> Place:
    """The local path or the address that `where` names. Raises: UserError for an address without a bucket."""
    if isinstance(where, Path | StoragePath):
        return where
    scheme, mark, rest = where.partition("://")
    if not mark:
        return Path(where)
    if scheme in LOCAL_SCHEMES:
        return Path(rest)
    url = f"{scheme}://{rest.rstrip('/')}"
    if not scheme or not rest.strip("/"):
        raise UserError(
            f"{where} is not a complete address: use s3://bucket/folder or a path on this machine"
        )
    return StoragePath(url)
