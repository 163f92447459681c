"""Runs a function on fresh gloo ranks of this machine, one thread each, and measures how much memory a step takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from megascratch.verification.pool import Pool

RANKS = 2


class Side(Protocol):
    """One side of a contest."""

    def step(self) -> object:
        """A whole training step; returns when all ranks have taken theirs."""


def fresh(function: Callable, *args: object) -> list:
    """function(*args) on RANKS new processes; results in rank order."""
    pool = Pool(timeout=300)
    try:
        return pool.run(RANKS, function, *args)
    finally:
        pool.close()


def memory(make: Callable[..., Side], *args: object) -> int:
    """On a fresh rank: bytes by which the resident set grew at most, from before make(*args) through three steps."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    before = _resident("VmRSS")
    side = make(*args)
    for _ in range(3):
        side.step()
    return _resident("VmHWM") - before


def mib(sizes: list[int]) -> str:
    return " ".join(f"{size / 2**20:.0f}" for size in sizes)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
