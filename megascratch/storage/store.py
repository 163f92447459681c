"""Reads and writes objects in a store (S3, Google, Azure ...) through fsspec. Every operation is retried with growing
pauses, and every failure is one clear message.

fsspec needs a library for each kind of store, e.g. s3fs for s3:// (an optional extra). Any scheme that fsspec supports
works the same way.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import fsspec

from megascratch.config.errors import UserError
from megascratch.runtime.faults import FaultError

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each retry
EXTRAS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}
# fields that change with the content
VERSIONS = (
    "ETag",
    "etag",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)
PART_BYTES = 32 << 20  # smallest part of an upload
MOST_PARTS = 9_000  # of an upload; S3 accepts 10,000
COPY_BYTES = 8 << 20
Answer = TypeVar("Answer")


class StoreError(UserError):
    """The store refused, or did not answer after all retries. A later attempt may succeed."""


class AbsentError(StoreError):
    """The object or its bucket does not exist."""


class Object(NamedTuple):
    """One object in a store."""

    url: str
    size: int
    version: str


class Store:
    """The store of an address. Every method takes full addresses of objects.

    Args:
        waits: seconds before each retry; None: WAITS.

    Raises: UserError if the library for its scheme is missing, or the scheme is unknown. Every method: StoreError,
    AbsentError.
    """

    def __init__(self, url: str, waits: Sequence[float] | None = None):
        self._waits = waits
        scheme = url.split("://")[0]
        try:  # no listings cache: objects that other processes write must be seen at once
            self._system: Any = fsspec.core.url_to_fs(url, use_listings_cache=False)[0]
        except ImportError as error:
            library = EXTRAS.get(scheme, "a library")
            how = "pip install 'megascratch[s3]'" if library == "s3fs" else f"pip install {library}"
            raise UserError(
                f"{url}: {scheme}:// needs {library}, which is not installed: {how}"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{url}: {error}; use s3://bucket/prefix or a path on this machine"
            ) from error

    def describe(self, url: str) -> Object:
        """The size and the version of an object."""
        return self._ask(lambda: self._object(url), f"{url} cannot be found")

    def exists(self, url: str) -> bool:
        """Whether an object exists. fsspec's own `exists` is not used: some stores return False on any error."""
        try:
            self._ask(lambda: self._system.info(url), f"{url} cannot be looked up")
        except AbsentError:
            return False
        return True

    def read(
        self, url: str, start: int, stop: int, check: Callable[[], None] = lambda: None
    ) -> bytes:
        """Reads bytes [start, stop), at least one; `check` is called when they have arrived."""

        def ask() -> bytes:
            content: bytes = self._system.cat_file(url, start=start, end=stop)
            check()
            if len(content) != stop - start:
                raise OSError(f"received {len(content)} bytes instead of {stop - start}")
            return content

        return self._ask(ask, f"{url}: bytes {start} to {stop} cannot be read")

    def content(self, url: str) -> bytes:
        """The entire content of a small object."""
        return self._ask(lambda: bytes(self._system.cat_file(url)), f"{url} cannot be read")

    def names(self, url: str) -> list[str]:
        """Names of the objects and folders directly below; empty if there are none."""
        return [name for name, _ in self._listed(url)]

    def sizes(self, url: str) -> dict[str, int]:
        """Sizes in bytes of the objects directly below, by name."""
        sizes = {}
        for name, info in self._listed(url):
            if info["type"] == "file":
                sizes[name] = int(info["size"] or 0)
        return sizes

    def put(self, url: str, content: bytes) -> None:
        """Writes an object, replacing an existing one."""
        self._ask(lambda: self._system.pipe_file(url, content), f"{url} cannot be written")

    def create(self, url: str, content: bytes) -> bool:
        """Writes an object unless it exists; returns False, and changes nothing, if one with other content exists.

        If the store supports conditional writes (S3's If-None-Match, Google, Azure), exactly one of several callers
        succeeds. In other stores the object is looked up first, and two simultaneous callers may both succeed.
        """

        def ask() -> bool:
            try:
                self._system.pipe_file(url, content, mode="create")
            except FileExistsError:
                # perhaps written by this call, if the answer to an earlier attempt was lost
                return bool(self._system.cat_file(url) == content)
            except Exception as error:
                if not _lacks_conditional_writes(error):
                    raise
                if self.exists(url):
                    return bool(self._system.cat_file(url) == content)
                self._system.pipe_file(url, content)
            return True

        return self._ask(ask, f"{url} cannot be written")

    def upload(self, url: str, size: int, content: Callable[[], Iterable[memoryview]]) -> None:
        """Writes an object in parts, with memory for two of them; the object appears only when all parts are written.

        Args:
            content: returns the blocks of the object; called again in each attempt.
        """
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        self._ask(lambda: self._upload(url, part_bytes, content()), f"{url} cannot be written")

    def _upload(self, url: str, part_bytes: int, content: Iterable[memoryview]) -> None:
        file = self._system.open(url, "wb", block_size=part_bytes)
        try:
            for block in content:
                for start in range(0, len(block), COPY_BYTES):
                    file.write(block[start : start + COPY_BYTES])
            file.close()
        except BaseException:
            with suppress(Exception):
                file.discard()
            with suppress(AttributeError):
                file.closed = True  # otherwise the garbage collector would close it and publish half an object
            raise

    def delete(self, *urls: str) -> None:
        """Deletes objects; one that does not exist is not an error."""
        for url in urls:
            with suppress(AbsentError):
                self._ask(lambda: self._system.rm_file(url), f"{url} cannot be deleted")  # noqa: B023

    def delete_below(self, url: str) -> None:
        """Deletes every object below a folder."""
        with suppress(AbsentError):
            self._ask(lambda: self._system.rm(url, recursive=True), f"{url} cannot be deleted")

    def copy_below(self, url: str, target: str) -> None:
        """Copies every object below a folder, within the store."""
        self._ask(lambda: self._copy_below(url, target), f"{url} cannot be copied to {target}")

    def _copy_below(self, url: str, target: str) -> None:
        start = len(self._system._strip_protocol(url))
        new_folder = self._system._strip_protocol(target)
        for path in self._system.find(url):
            self._system.cp_file(path, new_folder + path[start:])

    def abort_uploads(self, beginning: str) -> None:
        """Aborts unfinished uploads of objects whose addresses begin with `beginning`: S3 keeps and bills their parts.
        Other stores discard them by themselves."""
        if hasattr(self._system, "call_s3"):
            self._ask(
                lambda: self._abort_uploads(beginning),
                f"unfinished uploads of {beginning} cannot be aborted",
            )

    def _abort_uploads(self, beginning: str) -> None:
        bucket, key, _ = self._system.split_path(beginning)
        answer = self._system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        for upload in answer.get("Uploads", ()):
            self._system.abort_mpu(bucket, upload["Key"], upload["UploadId"])

    def _listed(self, url: str) -> list[tuple[str, dict[str, Any]]]:
        """(name, fsspec's record) of everything directly below."""

        def ask() -> list[dict[str, Any]]:
            try:
                return list(self._system.ls(url, detail=True))
            except FileNotFoundError as error:
                if _message(error).get("Error", {}).get("Code") == "NoSuchBucket":
                    raise
                return []

        rows = self._ask(ask, f"{url} cannot be listed")
        own = self._system._strip_protocol(url).rstrip("/")
        listed = []
        for row in rows:
            path = row["name"].rstrip("/")
            if path != own:
                name = path.rpartition("/")[2]
                listed.append((name, row))
        return listed

    def _object(self, url: str) -> Object:
        info = self._system.info(url)
        version = ""
        for name in VERSIONS:
            if info.get(name):
                version = str(info[name]).strip('"')
                break
        return Object(url, int(info["size"] or 0), version)

    def _ask(self, ask: Callable[[], Answer], failure: str) -> Answer:
        return retry(ask, failure, WAITS if self._waits is None else self._waits)


def _message(error: Exception) -> dict[str, Any]:
    """The response of S3 that caused the error; empty for other errors."""
    return getattr(error.__cause__, "response", None) or {}


def _lacks_conditional_writes(error: Exception) -> bool:
    """Whether the error says that the store, or the library for it, does not support conditional writes."""
    not_implemented = _message(error).get("ResponseMetadata", {}).get("HTTPStatusCode") == 501
    return not_implemented or isinstance(error, TypeError | ValueError | NotImplementedError)


def retry(ask: Callable[[], Answer], failure: str, waits: Sequence[float]) -> Answer:
    """Calls `ask` until it succeeds. Raises: StoreError if the store refuses, or does not answer after all retries."""
    for wait in (*waits, None):
        try:
            return ask()
        except (UserError, FaultError):
            raise
        except (FileNotFoundError, PermissionError) as error:
            kind = AbsentError if isinstance(error, FileNotFoundError) else StoreError
            raise kind(
                f"{failure}: {error or type(error).__name__}; check address and credentials"
            ) from error
        except Exception as error:  # each library raises errors of its own; most are temporary
            if wait is None:
                times = f" after {len(waits) + 1} attempts" if waits else ""
                raise StoreError(
                    f"{failure}{times}: {type(error).__name__}: {error}; check network and store"
                ) from error
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
