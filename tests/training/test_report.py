"""What a run tells: every row once, on whatever disk."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from megascratch.training.curves import draw
from megascratch.training.report import Report
from tests.support.sinks import report_to


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


def test_a_disk_that_takes_no_report_for_a_while_has_every_row_in_the_end(
    tmp_path, monkeypatch, capsys
):
    report = Report(str(tmp_path), str(tmp_path), 8, 0)
    fsync = os.fsync
    rows = [{"step": step, "event": "tried", "number": step} for step in range(5)]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    report.event(rows[0], "")
    assert report.metrics is not None
    report.metrics.close()
    monkeypatch.setattr(report.metrics, "write", full, raising=False)
    monkeypatch.setattr("os.fsync", full)
    for row in rows[1:3]:
        report.event(row, "")
    monkeypatch.setattr("os.fsync", fsync)
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
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    Report(str(tmp_path), str(tmp_path), 8, 4).close({})
    assert rows_of(tmp_path) == [row] and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("seconds", "kept"), [(0.0, True), (2.0, False)])
def test_a_run_without_a_step_left_keeps_what_the_one_before_measured(tmp_path, seconds, kept):
    for loss, took, code in ((3.5, 9.0, 80), (None, seconds, 0)):
        report = Report(str(tmp_path), str(tmp_path), 8, 0)
        report.close(
            {
                "layout": {},
                "loss": loss,
                "seconds": took,
                "stopped_early": code != 0,
                "exit_code": code,
            }
        )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["loss"], summary["exit_code"]) == (3.5 if kept else None, 0)


DAMAGE = {
    "no JSON": b'{"step": 2, "loss"',
    "no UTF-8": b'{"step": 2, "loss": 1.0, "note": "\xff"}',
    "NULs after a power loss": b"\0" * 64,
    "no step": b'{"loss": 1.0}',
    "a step that is a text": b'{"step": "2", "loss": 1.0}',
    "a loss that is a text": b'{"step": 2, "loss": "low"}',
    "a list": b"[2, 1.0]",
    "a number": b"2",
    "nothing": b"",
    "a long number": b'{"step": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_line_of_the_metrics_is_left_out_and_the_file_kept(tmp_path, capsys, damage):
    rows = [{"step": step, "loss": 2.0} for step in (1, 3, 4, 9)]
    lines = [json.dumps(row).encode() for row in rows]
    before = b"\n".join([lines[0], DAMAGE[damage], *lines[1:], b""])
    (tmp_path / "metrics.jsonl").write_bytes(before)
    report = Report(str(tmp_path), str(tmp_path), 8, 4)
    report.event({"step": 5, "event": "tried"}, "")
    report.close({})
    assert rows_of(tmp_path) == [*rows[:3], {"step": 5, "event": "tried"}]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(told) == 1 and "line 2 is damaged and left out" in told[0] and ".damaged" in told[0]


def test_a_last_line_that_a_crash_cut_short_is_no_damage(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    Report(str(tmp_path), str(tmp_path), 8, 1).close({})
    assert rows_of(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert "warning" not in capsys.readouterr().out and not list(tmp_path.glob("*.damaged"))


def test_damaged_files_are_kept_one_beside_the_other(tmp_path):
    for content in (b"first\n", b"second\n"):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        Report(str(tmp_path), str(tmp_path), 8, 1).close({})
    kept = [
        (tmp_path / name).read_bytes()
        for name in ("metrics.jsonl.damaged", "metrics.jsonl.damaged.2")
    ]
    assert kept == [b"first\n", b"second\n"]


@pytest.mark.parametrize("content", [b"[1]", b"null", b"\xff", b"{", b"", b"[" * 100_000])
def test_a_damaged_summary_is_replaced(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)
    summary = {"layout": {}, "loss": None, "seconds": 0, "stopped_early": False, "exit_code": 0}
    Report(str(tmp_path), str(tmp_path), 8, 8).close(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_rows_from_anywhere_can_be_drawn(tmp_path):
    rows = [
        {"step": 1, "loss": 1.0, "split": "$x$_\x1b[31m{"},
        {"step": 2, "loss": None},
        {"step": 1 << 62, "loss": 1e308},
        {"step": 3, "loss": float("nan"), "split": ""},
    ]
    draw(rows, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000 and not list(tmp_path.glob("*.partial"))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_full_disk_did_not_take_is_not_listed_as_written_and_not_there(
    tmp_path, monkeypatch, capsys
):
    report = Report(str(tmp_path), str(tmp_path), 8, 0)
    report.event({"step": 1, "event": "tried"}, "")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    monkeypatch.setattr("os.fsync", full)
    report.close({})
    last = capsys.readouterr().out.splitlines()[-1]
    assert "metrics.jsonl" in last and "loss.png" not in last and "summary.json" not in last
    assert not list(tmp_path.glob("loss.png*")) and not list(tmp_path.glob("summary.json*"))


def test_an_error_of_tensorboards_thread_is_told_in_a_line_and_rows_go_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    hook = threading.excepthook
    report = report_to(["tensorboard"], tmp_path / "run")
    rows = [{"step": step, "event": "tried", "number": step} for step in range(30)]
    for row in rows:
        report.event(row, "")
    report.close({})
    said = capsys.readouterr()
    assert said.out.count("warning: ") == 1 and "No space left on device" in said.out
    assert (
        "Traceback" not in said.out + said.err
        and "tensorboard --logdir" not in said.out.splitlines()[-1]
    )
    assert rows_of(tmp_path / "run") == rows and threading.excepthook is hook


def test_a_folder_that_cannot_be_made_stops_no_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    report = Report(str(tmp_path / "file" / "run"), str(tmp_path / "file" / "events"), 8, 0)
    report.event({"step": 1, "event": "tried"}, "")
    report.close({})
    assert "no file of the report could be written" in capsys.readouterr().out
