"""Measures the resident memory of this process and returns freed memory to the operating system (Linux, glibc)."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path


def resident() -> int | None:
    """Resident bytes of this process; None: this system does not report them."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def give_back() -> None:
    """Returns freed memory to the system. glibc would keep it, but that of a freed vocabulary is not needed again."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
