"""A bad step is computed twice: what does not repeat changes nothing of the run, and what repeats is bad."""

import pytest

from megascratch.commands import main
from megascratch.training.trainer import Trainer
from tests.support.pretrain_runs import curve, mock, rows

INJECTED = {"rerun_bad_steps": True, "error_injection_rate": 3, "train_iters": 4}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The curve of a run without errors."""
    folder = tmp_path_factory.mktemp("plain")
    assert main(mock(folder, train_iters=4)) == 0
    return curve(folder)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            "correct_result",
            "a check is injected (injected: correct_result); a second computation gives the same",
        ),
        (
            "transient_error",
            "the loss is nan (injected: transient_error); a second computation gives the loss",
        ),
    ],
)
def test_an_error_that_does_not_repeat_leaves_no_trace_in_the_run(
    tmp_path, capsys, plain, kind, told
):
    assert main(mock(tmp_path, **INJECTED, error_injection_type=kind)) == 0
    said = capsys.readouterr().out
    assert told in said and curve(tmp_path) == plain


def test_an_error_that_repeats_is_a_bad_step(tmp_path, capsys):
    words = mock(tmp_path, **INJECTED, error_injection_type="persistent_error", on_bad_step="skip")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "gives the same: a persistent error" in said and "| skip" in said
    assert [row["step"] for row in rows(tmp_path) if "grad_norm" in row] == [1, 2, 3, 4]


def test_an_error_of_the_machine_is_told_from_one_of_the_data(tmp_path, capsys, monkeypatch, plain):
    """The gradients of one computation are damaged, as by a bit that flips in memory."""
    compute, calls = Trainer._agreed, []

    def damaged(self, parts, own):
        calls.append(len(calls))
        if len(calls) == 3:
            parts = parts * float("nan")
        return compute(self, parts, own)

    monkeypatch.setattr(Trainer, "_agreed", damaged)
    assert main(mock(tmp_path, train_iters=4, rerun_bad_steps=True)) == 0
    assert len(calls) == 5 and curve(tmp_path) == plain
    assert "a transient error, look at the machine" in capsys.readouterr().out
