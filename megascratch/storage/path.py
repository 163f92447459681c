"""What a user calls a folder in, a place out: a path of this machine, or an address such as s3://bucket/run.

`pathlib` makes one slash of the two behind the scheme, so an address is a record of its own, which speaks of names as a
Path does. Whoever only names places needs no case; whoever opens them asks `isinstance(place, Path)`.
"""

from dataclasses import dataclass
from pathlib import Path

from megascratch.config.errors import UserError

LOCAL_SCHEMES = ("file", "local")


@dataclass(frozen=True, order=True)
class StoragePath:
    """A place in object storage; `url` has no slash at its end."""

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
        """Itself: a store knows no links."""
        return self


Place = Path | StoragePath


def storage_path(where: str | Place) -> Place:
    """A path of this machine, or an address. Raises: UserError for an address without a bucket."""
    if isinstance(where, Path | StoragePath):
        return where
    scheme, mark, rest = where.partition("://")
    if not mark:
        return Path(where)
    if scheme in LOCAL_SCHEMES:
        return Path(rest)
    url = f"{scheme}://{rest.rstrip('/')}"
    if not scheme or not rest.strip("/"):
        raise UserError(f"{where} names no place: use s3://bucket/folder or a path on this machine")
    return StoragePath(url)
