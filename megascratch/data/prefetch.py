"""Prefetches the items of an iterator in a background thread, in the same order.

    thread     make 0 | make 1 | make 2 | (full: waits)     | make 3
    consumer            step with 0     | step with 1       | step with 2

An exception while an item is made is raised where the consumer asks for that item.
"""

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class _End(NamedTuple):
    """Follows the last item: the end of the source (None), or the exception that ended it."""

    error: BaseException | None


class Prefetch(Generic[Item]):
    """Items of `source`, up to `ahead` of them made early; 0: no thread, each item is made when it is asked for.

    `close` (or the end of `with`) waits for the item that is being made and ends the thread.
    """

    def __init__(self, source: Iterator[Item], ahead: int):
        self._source = source
        self._stop = Event()
        self._ready: Queue[Item | _End] = Queue(maxsize=ahead)
        self._thread = Thread(target=self._make, name="prefetch", daemon=True) if ahead else None
        self._ended = False
        if self._thread is not None:
            self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._thread is None:
            return next(self._source)
        if self._ended:
            raise StopIteration
        item = self._ready.get()
        if not isinstance(item, _End):
            return item
        self._ended = True
        raise item.error or StopIteration

    def _make(self) -> None:
        error = None
        try:
            for item in self._source:
                self._ready.put(item)
                if self._stop.is_set():
                    return
        except BaseException as raised:  # raised again in the consumer, whatever it is
            error = raised
        self._ready.put(_End(error))

    def close(self) -> None:
        """Ends the thread; items that were not asked for are dropped."""
        if self._thread is None:
            return
        self._stop.set()
        self._ended = True
        while self._thread.is_alive():
            with suppress(Empty):
                self._ready.get(timeout=0.01)  # room for a thread that waits to put
        self._thread.join()

    def __enter__(self) -> "Prefetch[Item]":
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()
