"""Keeps the process that calls the library as it is: a notebook, a script without a main guard, a server."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from megascratch.config.errors import UserError


@contextmanager
def kept_environment() -> Iterator[None]:
    """A context after which every environment variable has the value that it had before."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def hidden_main() -> Iterator[None]:
    """A context in which processes can be started that do not run the caller's main program again.

    multiprocessing imports the file of `__main__` in each process that it spawns. A script without a main guard would
    start its own run there, and a notebook has no file that could be imported. Our processes need nothing of it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def require_main_thread(what: str) -> None:
    """Raises: UserError outside the main thread, where Python allows no signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        raise UserError(
            f"{what} was called in thread {threading.current_thread().name}: it handles Ctrl-C and SIGTERM, which "
            "Python allows in the main thread only; call it there, or in a process of its own"
        )
