"""Breaks of how a hang is named where `wait` returns at once; each with the law of `tests/support/hangs.py` that must
notice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megascratch.parallel.watched_work import WatchedWork
from megascratch.runtime.launches import Launch, Launches
from tests.support.hangs import (
    DeviceMark,
    a_hang_is_named_by_its_oldest_launch,
    a_transfer_that_does_not_end_is_named,
    what_ends_late_is_no_hang,
)

Law = Callable[[Path, Callable], None]


def oldest_is_named(folder: Path, run: Callable) -> None:
    a_hang_is_named_by_its_oldest_launch()


def late_is_no_hang(folder: Path, run: Callable) -> None:
    what_ends_late_is_no_hang()


def transfers_are_named(folder: Path, run: Callable) -> None:
    a_transfer_that_does_not_end_is_named()


# ---- replacements ----------------------------------------------------------------------------------------------


def newest(self):
    launched = [launch for line in self._of_line.values() for launch in line]
    return max(launched, key=lambda launch: launch.began, default=None)


def of_the_first_line(self):
    for launched in self._of_line.values():
        while launched and launched[0].has_ended:
            launched.popleft()
        return launched[0] if launched else None


def forgotten(self):
    self.work.wait()
    self.launch.ending = DeviceMark()
    self.launch.ending.yes = True


BREAKS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "the newest launch is named": ([(Launches, "oldest", newest)], oldest_is_named),
    "the transfers of one line alone are looked at": (
        [(Launches, "oldest", of_the_first_line)],
        transfers_are_named,
    ),
    "a launch is forgotten once it is awaited": (
        [(WatchedWork, "wait", forgotten)],
        oldest_is_named,
    ),
    "a launch that has ended is named": (
        [(Launch, "has_ended", property(lambda self: False))],
        late_is_no_hang,
    ),
}
