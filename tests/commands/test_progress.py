"""How a command shows its progress where there is no terminal, and that a quiet one shows none."""

import pytest

from megascratch.commands.progress import Steps
from megascratch.config.verbosity import QUIET, verbosity
from megascratch.runtime.run_log import RUN_LOG
from megascratch.training.report import Report


@pytest.mark.parametrize(
    ("total", "shown"),
    [
        (1, []),
        (3, [1, 2]),
        (10, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (1000, [100, 200, 300, 400, 500, 600, 700, 800, 900]),
    ],
)
def test_a_log_has_at_most_nine_lines_of_progress(capsys, total, shown):
    steps = Steps("batches")
    for done in range(1, total + 1):
        steps(done, total)
    expected = [f"{done:,} of {total:,} batches" for done in shown]
    assert capsys.readouterr().err.splitlines() == expected


def test_a_quiet_command_shows_no_progress(capsys):
    steps = Steps("batches")
    with verbosity(QUIET):
        for done in range(1, 101):
            steps(done, 100)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("choice", "printed"), [(None, "step, valid"), (QUIET, "valid")])
def test_a_quiet_run_prints_results_and_keeps_every_message_in_its_log(
    tmp_path, capsys, monkeypatch, choice, printed
):
    kept = []
    monkeypatch.setattr(RUN_LOG, "info", lambda form, *texts: kept.append(form % texts))
    with verbosity(choice):
        report = Report(str(tmp_path), "a run", total_steps=2, first_step=0)
        report.say("a step")
        report.say("a warning", always=True)
        report.evaluation({"step": 2, "split": "valid", "loss": 1.0, "tokens": 3})
        report.close({"exit_code": 0})
    lines = capsys.readouterr().out.splitlines()
    assert ("a step" in lines) == (printed == "step, valid")
    assert "a warning" in lines
    assert any("valid loss 1.0000" in line for line in lines)
    assert lines[-1].startswith("metrics ")
    assert kept[:2] == ["a step", "a warning"] and len(kept) == 4
