"""How much memory this process has, and freed memory back to the system, where the system lets a process do so."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path


def resident() -> int | None:
    """Bytes of this process in memory; None: this system does not say."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def give_back() -> None:
    """glibc keeps what is freed for the next one who asks; what a vocabulary leaves behind nobody will ask for."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
