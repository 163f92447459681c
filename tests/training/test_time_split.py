"""Where the wall time of a run goes: the parts add up, and what is done twice is lost."""

import json
import subprocess

import pytest

from megascratch.training.time_split import PARTS, TimeSplit, process_began
from tests.support.pretrain_runs import ENVIRONMENT, ROOT, command, mock, rows


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def split_of(*laps: tuple[str, float]) -> TimeSplit:
    """A split that began at second 100, with these parts and seconds."""
    clock = Clock()
    times = TimeSplit(100.0, clock)
    for part, seconds in laps:
        clock.now += seconds
        times.lap(part)
    return times


def only(**seconds: float) -> dict[str, float]:
    return dict.fromkeys(PARTS, 0.0) | seconds


def test_the_parts_add_up_to_the_time_of_the_clock():
    laps = [("start", 5.0), ("data", 0.5), ("steps", 3.0), ("other", 0.25), ("steps", 4.0), ("lost", 2.0)]  # fmt: skip
    times = split_of(*laps)
    assert sum(times.total.values()) == 14.75
    assert times.total == only(start=5.0, data=0.5, steps=7.0, other=0.25, lost=2.0)
    assert times.goodput == 7.0 / 14.75
    assert times.take() == {"start": 5.0, "data": 0.5, "steps": 7.0, "other": 0.25, "lost": 2.0}
    assert times.take() == {} and sum(times.total.values()) == 14.75


def test_a_clock_that_is_set_back_adds_nothing():
    clock = Clock()
    times = TimeSplit(100.0, clock)
    clock.now = 90.0
    times.lap("steps")
    clock.now = 103.0
    times.lap("data")
    assert times.total == only(data=3.0)


ROWS = [
    {"step": 0, "event": "start", "wall": {}, "time": 995.0, "launch": 990.0},
    {"step": 1, "loss": 5.0, "wall": {"start": 5.0, "data": 0.5, "steps": 1.0}, "time": 1000.0},
    {"step": 10, "loss": 4.0, "wall": {"data": 1.0, "steps": 9.0}, "time": 1010.0},
    {"step": 10, "split": "valid", "loss": 4.1, "time": 1012.0},
    {"step": 20, "loss": 3.0, "wall": {"validation": 2.0, "data": 1.0, "steps": 10.0}, "time": 1025.0},
    {"step": 20, "event": "save", "bytes": 7, "time": 1026.0},
    {"step": 30, "loss": 2.0, "wall": {"checkpoints": 3.0, "data": 2.0, "steps": 20.0}, "time": 1051.0},
]  # fmt: skip
"""Of a run that was killed after step 30."""

RESUMES = {
    # the last checkpoint: steps 21 to 30 and their data are done again
    20: only(start=5.0, data=2.5, steps=20.0, validation=2.0, checkpoints=3.0, lost=22.0),
    # in the middle of a log interval: 6 of its 10 steps stay
    16: only(start=5.0, data=1.5, steps=16.0, validation=2.0, checkpoints=3.0, lost=27.0),
    30: only(start=5.0, data=4.5, steps=40.0, validation=2.0, checkpoints=3.0),
    35: only(start=5.0, data=4.5, steps=40.0, validation=2.0, checkpoints=3.0),
}
"""Step -> worked out by hand. 54.5 seconds in each case."""


@pytest.mark.parametrize("step", RESUMES, ids=str)
def test_a_resumed_run_loses_the_steps_that_it_does_again(step):
    times = TimeSplit(0.0, Clock())
    row = times.resume(ROWS, step, launch=2000.0, began=2000.0)
    assert times.total == RESUMES[step] and sum(times.total.values()) == 54.5
    kept = TimeSplit(0.0, Clock())
    after = [*[old for old in ROWS if old["step"] <= step], row]
    kept.resume(after, 99, launch=3000.0, began=3000.0)
    assert kept.total == pytest.approx(times.total), "the next resume reads the same from the file"


def test_a_restart_by_the_launcher_also_loses_the_time_without_ranks():
    times = TimeSplit(0.0, Clock())
    times.resume(ROWS, 20, launch=990.0, began=1060.0)
    assert times.total == RESUMES[20] | {"lost": 22.0 + 9.0}


def test_a_restart_before_the_first_checkpoint_has_lost_all_its_steps_and_a_new_run_has_no_past():
    restarted = TimeSplit(0.0, Clock())
    restarted.resume(ROWS, 0, launch=990.0, began=1051.0)
    assert restarted.total == only(start=5.0, validation=2.0, checkpoints=3.0, lost=44.5)
    new = TimeSplit(0.0, Clock())
    new.resume(ROWS, 0, launch=2000.0, began=2000.0)
    assert new.total == only()


def test_a_rollback_loses_the_steps_since_the_checkpoint():
    """Back from step 34 to 25: steps 21 to 25 of the row of step 30 stay; the bad step is not logged yet."""
    times = split_of(("data", 1.0), ("steps", 4.0), ("lost", 1.0))
    row = times.undo(ROWS, 34, 25)
    assert times.total == only(
        start=5.0, data=2.5, steps=30.0, validation=2.0, checkpoints=3.0, lost=10.0 + 2.0 + 6.0
    )
    assert row == only(steps=10.0, checkpoints=3.0, lost=18.0)


def test_a_rollback_inside_a_log_interval_keeps_the_steps_before_the_checkpoint():
    """Back from step 34 to 31, before a row was written: one of four steps stays."""
    times = split_of(("steps", 4.0))
    assert times.undo(ROWS, 34, 31) == only(steps=1.0, lost=3.0)


def test_rows_that_somebody_edited_are_no_obstacle():
    for wall in (None, 3, [1], {"steps": "x"}, {"else": 1.0}):
        times = TimeSplit(0.0, Clock())
        times.resume([{"step": 1, "wall": wall, "time": "now"}], 1, 1.0, 1.0)
        assert times.total == only()


def test_a_process_for_several_runs_counts_from_the_launch():
    assert process_began(123.0) == 123.0


def test_the_account_of_a_run_that_is_killed_and_restarted_is_complete(tmp_path):
    """By one launcher: from its start to its end each second is in one part, and steps 5 and 6 are lost."""
    words = mock(tmp_path, save_interval=4, eval_interval=3, eval_iters=1)
    words += ["--nproc-per-node", "1", "--max-restarts", "1"]
    fault = {"MEGASCRATCH_FAULT": "step.end:0:6:kill"}
    done = subprocess.run(command(words), cwd=ROOT, env=ENVIRONMENT | fault, timeout=300)
    assert done.returncode == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    wall = summary["wall_seconds"]
    first, *_, last = rows(tmp_path)
    assert (first["event"], last["event"]) == ("start", "end")
    assert sum(wall.values()) == pytest.approx(last["time"] - first["launch"], abs=0.1)
    assert min(wall.values()) >= 0.0, wall
    assert all(wall[part] for part in ("steps", "start", "validation", "checkpoints", "lost")), wall
    assert summary["goodput"] == pytest.approx(wall["steps"] / sum(wall.values()), abs=1e-3)
    total = dict.fromkeys(PARTS, 0.0)
    for row in rows(tmp_path):
        for part, seconds in row.get("wall", {}).items():
            total[part] += seconds
    assert total == pytest.approx(wall, abs=0.02), "the rows say the same"
