"""What is asked of a store (S3, Google, Azure ...) through fsspec, each question again with growing pauses until it is
answered; every failure is one sentence.

fsspec speaks to the store: s3fs for s3://, an optional extra; any scheme that fsspec knows works the same.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import fsspec

from megascratch.config.errors import UserError
from megascratch.runtime.faults import FaultError

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
        """Not fsspec's own question, which for some stores takes any error for a no."""
        try:
            self._ask(lambda: self._system.info(url), f"{url} cannot be looked for")
        except AbsentError:
            return False
        return True

    def read(self, url: str, start: int, stop: int, check: Callable[[], None] = lambda: None) -> bytes:
        """Bytes [start, stop), of which there is at least one; `check` is asked when they have come."""

        def ask() -> bytes:
            content: bytes = self._system.cat_file(url, start=start, end=stop)
            check()
            if len(content) != stop - start:
                raise OSError(f"{len(content)} bytes came")
            return content

        return self._ask(ask, f"{url}: bytes {start} to {stop} cannot be read")

    def content(self, url: str) -> bytes:
        """The whole of a small object."""
        return self._ask(lambda: bytes(self._system.cat_file(url)), f"{url} cannot be read")

    def names(self, url: str) -> list[str]:
        """Of the objects and folders right below; none where there is nothing."""
        return [name for name, _ in self._listed(url)]

    def sizes(self, url: str) -> dict[str, int]:
        """Of the objects right below."""
        return {name: int(told["size"] or 0) for name, told in self._listed(url) if told["type"] == "file"}

    def put(self, url: str, content: bytes) -> None:
        """Writes an object, in the place of another one if there is one."""
        self._ask(lambda: self._system.pipe_file(url, content), f"{url} cannot be written")

    def create(self, url: str, content: bytes) -> bool:
        """Writes an object; False, and nothing is changed, where there already is another one.

        Of several callers one succeeds where the store knows a write under a condition (S3's If-None-Match, Google,
        Azure); elsewhere it is first looked whether there is one, and two callers at the same moment may both succeed.
        """

        def ask() -> bool:
            try:
                self._system.pipe_file(url, content, mode="create")
            except FileExistsError:  # by this very call, too, when the answer to an earlier attempt was lost
                return bool(self._system.cat_file(url) == content)
            except Exception as error:
                if not _knows_no_condition(error):
                    raise
                if self.exists(url):
                    return bool(self._system.cat_file(url) == content)
                self._system.pipe_file(url, content)
            return True

        return self._ask(ask, f"{url} cannot be written")

    def upload(self, url: str, size: int, content: Callable[[], Iterable[memoryview]]) -> None:
        """Writes an object in parts, with memory for two of them; nothing is there under its name before its end.

        Args:
            content: asked anew in each attempt.
        """
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        self._ask(lambda: self._upload(url, part_bytes, content()), f"{url} cannot be written")

    def _upload(self, url: str, part_bytes: int, content: Iterable[memoryview]) -> None:
        file = self._system.open(url, "wb", block_size=part_bytes)
        try:
            for piece in content:
                for start in range(0, len(piece), COPY_BYTES):
                    file.write(piece[start : start + COPY_BYTES])
            file.close()
        except BaseException:
            with suppress(Exception):
                file.discard()
            with suppress(AttributeError):
                file.closed = True  # else the collector would close it, and half an object would get its name
            raise

    def delete(self, *urls: str) -> None:
        """Deletes objects; those that are not there are no error."""
        for url in urls:
            with suppress(AbsentError):
                self._ask(lambda: self._system.rm_file(url), f"{url} cannot be deleted")  # noqa: B023

    def delete_below(self, url: str) -> None:
        """Deletes every object below a folder."""
        with suppress(AbsentError):
            self._ask(lambda: self._system.rm(url, recursive=True), f"{url} cannot be deleted")

    def copy_below(self, url: str, target: str) -> None:
        """Copies every object below a folder, inside of the store."""
        self._ask(lambda: self._copy_below(url, target), f"{url} cannot be copied to {target}")

    def _copy_below(self, url: str, target: str) -> None:
        start = len(self._system._strip_protocol(url))
        for path in self._system.find(url):
            self._system.cp_file(path, self._system._strip_protocol(target) + path[start:])

    def end_uploads(self, beginning: str) -> None:
        """Gives up the uploads that nobody has ended, of objects whose addresses begin so: S3 keeps and bills their
        parts. Other stores forget them by themselves."""
        if hasattr(self._system, "call_s3"):
            self._ask(lambda: self._end_uploads(beginning), f"open uploads of {beginning} cannot be ended")

    def _end_uploads(self, beginning: str) -> None:
        bucket, key, _ = self._system.split_path(beginning)
        found = self._system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        for upload in found.get("Uploads", ()):
            self._system.abort_mpu(bucket, upload["Key"], upload["UploadId"])

    def _listed(self, url: str) -> list[tuple[str, dict[str, Any]]]:
        def ask() -> list[dict[str, Any]]:
            try:
                return list(self._system.ls(url, detail=True))
            except FileNotFoundError as error:
                if _message(error).get("Error", {}).get("Code") == "NoSuchBucket":
                    raise
                return []

        rows = self._ask(ask, f"{url} cannot be listed")
        named = [(row["name"].rstrip("/").rpartition("/")[2], row) for row in rows]
        own = self._system._strip_protocol(url).rstrip("/")
        return [(name, row) for name, row in named if row["name"].rstrip("/") != own]

    def _object(self, url: str) -> Object:
        told = self._system.info(url)
        version = next((str(told[name]) for name in VERSIONS if told.get(name)), "")
        return Object(url, int(told["size"] or 0), version.strip('"'))

    def _ask(self, ask: Callable[[], Answer], failure: str) -> Answer:
        return retry(ask, failure, WAITS if self._waits is None else self._waits)


def _message(error: Exception) -> dict[str, Any]:
    """What S3 has answered; nothing for other errors."""
    return getattr(error.__cause__, "response", None) or {}


def _knows_no_condition(error: Exception) -> bool:
    """Whether a store, or the library that speaks to it, refuses to write under a condition."""
    unknown = _message(error).get("ResponseMetadata", {}).get("HTTPStatusCode") == 501
    return unknown or isinstance(error, TypeError | ValueError | NotImplementedError)


def retry(ask: Callable[[], Answer], failure: str, waits: Sequence[float]) -> Answer:
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
