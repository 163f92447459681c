"""Where the wall time of a run goes, and its goodput: the share of it in steps that count.

    time --start--|--data--|--steps--|--data--|--steps--|--checkpoints--|--validation--| ...

Each moment belongs to one part, so the parts add up to the whole. A row of metrics.jsonl has the seconds since the row
before it (`wall`). A resumed run reads them again: steps that came after its checkpoint, and their waits for data, are
done again, so that time is lost. A restart by the launcher also loses the time since the last row of the last attempt.
Between two launches no time is counted.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time
from typing import Any, NamedTuple

from megascratch.config.exit_codes import is_own_process
from megascratch.runtime.launch_environment import launch_environment
from megascratch.runtime.processes import own_age

PARTS = ("steps", "start", "data", "validation", "checkpoints", "lost", "other")
REPEATED = ("steps", "data")
"""The parts that are lost when a step is done again."""

Parts = dict[str, float]
"""Part -> seconds; parts without any may be missing."""


class TimeSplit:
    """Divides the time of this process among PARTS.

    Args:
        began: the time of `now` at which the first part begins.
    """

    def __init__(self, began: float, now: Callable[[], float] = monotonic):
        self._clock = now
        self._last = began
        self._now = dict.fromkeys(PARTS, 0.0)  # since the last row
        self.total = dict.fromkeys(PARTS, 0.0)

    def lap(self, part: str) -> None:
        """The time since the last lap belongs to this part."""
        now = self._clock()
        seconds = max(now - self._last, 0.0)
        self._last = max(now, self._last)
        self._now[part] += seconds
        self.total[part] += seconds

    def take(self) -> Parts:
        """The seconds of each part since the last call, for a row; parts without any are left out."""
        taken = {part: round(seconds, 4) for part, seconds in self._now.items() if seconds}
        self._now = dict.fromkeys(PARTS, 0.0)
        return taken

    def undo(self, rows: Sequence[Mapping[str, Any]], step: int, back_to: int) -> Parts:
        """The run has gone back to an earlier step.

        Args:
            rows: of the run so far; those after `back_to` will be removed.
            step: the last one that was trained.

        Returns: the seconds that a new row must have in place of those that are removed.
        """
        resuming = resumed([*rows, {"step": step, "wall": self._now}], back_to)
        self._now = dict.fromkeys(PARTS, 0.0)
        for part in PARTS:
            self.total[part] = resuming.kept[part] + resuming.undone[part]
        return resuming.undone

    def resume(
        self, rows: Sequence[Mapping[str, Any]], step: int, launch: float, began: float
    ) -> dict[str, Any]:
        """Continues the account of earlier processes of this run.

        Args:
            rows: theirs, in order; those after `step` will be removed.
            step: the one that the run resumes from; 0: a new run, or one that has failed before its first checkpoint.
            launch: time.time() when the launcher began.
            began: time.time() when this process began.

        Returns: the row with which this process begins.
        """
        starts = [row for row in rows if row.get("event") == "start"]
        same_launch = bool(starts) and starts[-1].get("launch") == launch
        earlier = resumed(rows if step or same_launch else [], step)
        wall = earlier.undone
        if same_launch:
            times = [row["time"] for row in rows if isinstance(row.get("time"), int | float)]
            wall["lost"] += max(began - max(times, default=began), 0.0)
        for part in PARTS:
            self.total[part] = earlier.kept[part] + wall[part]
        return event_row(step, "start", wall) | {"launch": launch}

    def in_words(self) -> str:
        """The shares of the whole run, the largest first; parts below half a percent are left out."""
        whole = sum(self.total.values()) or 1.0
        shares = []
        for part in sorted(PARTS, key=lambda part: -self.total[part]):
            if self.total[part] >= 0.005 * whole:
                name = "goodput (steps)" if part == "steps" else part
                shares.append(f"{name} {self.total[part] / whole:.0%}")
        return f"wall time {clock(whole)}: {', '.join(shares)}"

    @property
    def goodput(self) -> float:
        """The share of the run's time, up to now, in steps that count; 0 before any time has passed."""
        whole = sum(self.total.values())
        return self.total["steps"] / whole if whole else 0.0


def parts_of(rows: Sequence[Mapping[str, Any]]) -> Parts:
    """The sum of what the rows say. What is not a number is ignored."""
    total = dict.fromkeys(PARTS, 0.0)
    for row in rows:
        wall = row.get("wall")
        for part in PARTS:
            seconds = wall.get(part) if isinstance(wall, dict) else None
            if isinstance(seconds, int | float):
                total[part] += seconds
    return total


class Resumed(NamedTuple):
    """The time of earlier processes of a run that resumes."""

    kept: Parts
    """What the rows say that stay."""
    undone: Parts
    """What the rows said that are removed, for a new row; the steps that are done again are lost."""


def resumed(rows: Sequence[Mapping[str, Any]], step: int) -> Resumed:
    """The time of a run that resumes from a step.

    Args:
        rows: of the earlier processes, in order.
    """
    removed = [row for row in rows if row["step"] > step]
    undone = parts_of(removed)
    for part in REPEATED:
        undone["lost"] += undone[part]
        undone[part] = 0.0
    logged = [row for row in rows if "event" not in row and "split" not in row]
    before = [row["step"] for row in logged if row["step"] <= step]
    after = [row for row in logged if row["step"] > step]
    if after:
        # the log interval may have begun before `step`: its first steps are not done again
        begin = before[-1] if before else 0
        counts = (step - begin) / (after[0]["step"] - begin) * parts_of(after[:1])["steps"]
        undone["steps"] += counts
        undone["lost"] -= counts
    return Resumed(parts_of([row for row in rows if row["step"] <= step]), undone)


def event_row(step: int, event: str, wall: Mapping[str, float]) -> dict[str, Any]:
    """A row of the report that says where the time before it went."""
    seconds = {part: round(wall[part], 4) for part in PARTS if wall.get(part)}
    return {"step": step, "event": event, "wall": seconds, "time": round(time(), 3)}


def clock(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def process_began(launch: float) -> float:
    """time.time() when the work of this process for the run began.

    Args:
        launch: time.time() when the run was launched. It counts for the first attempt, whose launcher has checked
            settings and files before; in a process that does more than one run it is the only time that is known.
    """
    if not is_own_process():
        return launch
    own = time() - own_age()
    return own if launch_environment().attempt else min(own, launch)
