"""What a run tells: every row once, on whatever disk."""

import errno
import json
from pathlib import Path

import pytest

from megascratch.training.report import Report


def test_a_run_that_is_done_and_starts_again_writes_no_validation_twice(tmp_path):
    row = {"step": 8, "split": "valid", "loss": 3.5, "tokens": 64}
    for first_step in (0, 8):
        report = Report(str(tmp_path), str(tmp_path), 8, first_step)
        report.evaluation(row)
        report.evaluation(row | {"split": "test"})
        report.close({})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [row, row | {"split": "test"}]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_disk_that_takes_no_report_for_a_while_has_every_row_in_the_end(tmp_path, monkeypatch, capsys):
    report, write = Report(str(tmp_path), str(tmp_path), 8, 0), Path.write_text
    rows = [{"step": step, "event": "tried", "number": step} for step in range(5)]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    report.event(rows[0], "")
    assert report.metrics is not None
    report.metrics.close()
    monkeypatch.setattr(report.metrics, "write", full, raising=False)
    monkeypatch.setattr(Path, "write_text", full)
    for row in rows[1:3]:
        report.event(row, "")
    monkeypatch.setattr(Path, "write_text", write)
    for row in rows[3:]:
        report.event(row, "")
    report.close({})
    assert rows_of(tmp_path) == rows
    assert capsys.readouterr().out.count("cannot be written: ") == 1


def test_the_rows_of_a_resumed_run_are_kept_when_it_cannot_write_them_anew(tmp_path, monkeypatch):
    row = {"step": 4, "event": "tried"}
    report = Report(str(tmp_path), str(tmp_path), 8, 0)
    report.event(row, "")
    report.close({})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    Report(str(tmp_path), str(tmp_path), 8, 4).close({})
    assert rows_of(tmp_path) == [row] and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("seconds", "kept"), [(0.0, True), (2.0, False)])
def test_a_run_without_a_step_left_keeps_what_the_one_before_measured(tmp_path, seconds, kept):
    for loss, took, code in ((3.5, 9.0, 80), (None, seconds, 0)):
        report = Report(str(tmp_path), str(tmp_path), 8, 0)
        report.close({"layout": {}, "loss": loss, "seconds": took, "stopped_early": code != 0, "exit_code": code})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["loss"], summary["exit_code"]) == (3.5 if kept else None, 0)
