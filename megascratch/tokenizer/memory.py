"""Measures the resident memory of this process and returns freed memory to the operating system (Linux, glibc)."""

import ctypes
from contextlib import suppress

import psutil


def resident() -> int:
    """Resident bytes of this process."""
    return psutil.Process().memory_info().rss


def give_back() -> None:
    """Returns freed memory to the system. glibc would keep it, but that of a freed vocabulary is not needed again."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
