"""A run may start without the checkpoint that it names, without validations, and may end early with success."""

import json

import pytest

from megascratch.commands import main
from tests.support.pretrain_runs import mock, rows


def losses(folder) -> list[float]:
    return [row["loss"] for row in rows(folder) if "loss" in row and row.get("split") != "valid"]


def words_of(folder, **settings) -> list[str]:
    """A run that saves and loads the same folder, wherever its own output is."""
    places = {"save": folder / "ck", "load": folder / "ck"}
    return [*mock(folder, **places, **settings), "--no-exit-on-missing-checkpoint"]


@pytest.mark.parametrize("there", ["absent", "empty"])
def test_one_command_starts_and_resumes_a_run_whose_load_is_its_save(tmp_path, capsys, there):
    whole = tmp_path / "whole"
    assert main(mock(whole, train_iters=4)) == 0
    folder = tmp_path / "parts"
    if there == "empty":
        (folder / "ck").mkdir(parents=True)
    assert main(words_of(folder, train_iters=4, exit_interval=2)) == 80
    assert "has no checkpoint: the run starts from scratch" in capsys.readouterr().out
    assert main(words_of(folder, train_iters=4)) == 0
    assert "from scratch" not in capsys.readouterr().out
    assert losses(folder) == losses(whole)


def test_a_damaged_checkpoint_and_one_that_must_exist_are_no_fresh_start(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(mock(folder, load=folder / "ck")) == 2
    assert "no checkpoint" in capsys.readouterr().err
    (folder / "ck" / "step_00000002").mkdir(parents=True)
    assert main(words_of(folder)) == 2
    assert "has no valid step, only damaged ones" in capsys.readouterr().err


def test_a_stop_that_was_asked_for_may_end_with_zero(tmp_path):
    assert main([*mock(tmp_path, exit_interval=2), "--exit-zero-on-stop"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["exit_code"] == 80


def test_with_eval_iters_zero_nothing_is_validated(tmp_path, capsys):
    assert main(mock(tmp_path, eval_interval=2, eval_iters=0, split="9,1,0")) == 0
    assert not any(row.get("split") == "valid" for row in rows(tmp_path))
    said = capsys.readouterr()
    assert "eval-interval has no effect with eval-iters 0" in said.out + said.err
    assert "split has no effect with mock-data" in said.out + said.err
