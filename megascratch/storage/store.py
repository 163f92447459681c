"""What is asked of a store (S3, Google, Azure ...) through fsspec, each question again with growing pauses until it is
answered; every failure is one sentence.

fsspec speaks to the store: s3fs for s3://, an optional extra; any scheme that fsspec knows works the same.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import fsspec

from megascratch.config.errors import UserError
from megascratch.faults import FaultError

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each repeated attempt
EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")  # of an object
PART_BYTES, MOST_PARTS = 32 << 20, 9_000
"""Of an upload: S3 takes 10,000 parts."""
COPY_BYTES = 8 << 20
Answer = TypeVar("Answer")


class StoreError(UserError):
    """A store says no, or is silent to the end; later it may be different."""


class AbsentError(StoreError):
    """There is no such object, or no such bucket."""


class Object(NamedTuple):
    """One object of a store."""

    url: str
    size: int
    version: str


class Store:
    """The store of an address; every method names objects by whole addresses.

    Args:
        waits: seconds before each repeated attempt; None: WAITS.

    Raises: UserError where the library for its scheme is missing, or there is no such scheme. Every method: StoreError,
    AbsentError.
    """

    def __init__(self, url: str, waits: Sequence[float] | None = None):
        self._waits = waits
        scheme = url.split("://")[0]
        try:  # what others write must be seen at once, so no listing is kept
            self._system: Any = fsspec.core.url_to_fs(url, use_listings_cache=False)[0]
        except ImportError as error:
            library = EXTRAS.get(scheme, "a library")
            how = "pip install 'megascratch[s3]'" if library == "s3fs" else f"pip install {library}"
            raise UserError(f"{url}: {scheme}:// needs {library}, which is not installed: {how}") from error
        except ValueError as error:
            raise UserError(f"{url}: {error}; use s3://bucket/prefix or a path on this machine") from error

    def describe(self, url: str) -> Object:
        """Size and version."""
        return self._ask(lambda: self._object(url), f"{url} cannot be found")

    def exists(self, url: str) -> bool:
        return bool(self._ask(lambda: self._system.exists(url), f"{url} cannot be looked for"))

    def read(self, url: str, start: int, stop: int, check: Callable[[], None] = lambda: None) -> bytes:
        """Bytes [start, stop), of which there is at least one; `check` is asked when they have come."""

        def ask() -> bytes:
            content: bytes = self._system.cat_file(url, start=start, end=stop)
            check()
            if len(content) != stop - start:
                raise OSError(f"{len(content)} bytes came")
            return content

        return self._ask(ask, f"{url}: bytes {start} to {stop} cannot be read")

    def _object(self, url: str) -> Object:
        told = self._system.info(url)
        version = next((str(told[name]) for name in VERSIONS if told.get(name)), "")
        return Object(url, int(told["size"] or 0), version.strip('"'))

    def _ask(self, ask: Callable[[], Answer], failure: str) -> Answer:
        return answered(ask, failure, WAITS if self._waits is None else self._waits)


def answered(ask: Callable[[], Answer], failure: str, waits: Sequence[float]) -> Answer:
    """The answer of a store. Raises: StoreError when it says no or is silent to the end."""
    for wait in (*waits, None):
        try:
            return ask()
        except (UserError, FaultError):
            raise
        except (FileNotFoundError, PermissionError) as error:
            kind = AbsentError if isinstance(error, FileNotFoundError) else StoreError
            raise kind(f"{failure}: {error or type(error).__name__}; check address and credentials") from error
        except Exception as error:  # stores raise errors of their own libraries; most pass
            if wait is None:
                times = f" after {len(waits) + 1} attempts" if waits else ""
                raise StoreError(
                    f"{failure}{times}: {type(error).__name__}: {error}; check network and store"
                ) from error
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
