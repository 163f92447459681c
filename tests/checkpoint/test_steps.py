"""What a path that a user gives stands for: a step, a folder of steps, or the folder of a run."""

import pytest

from megascratch.checkpoint import Lease, resolve
from megascratch.checkpoint.steps import candidates
from megascratch.commands import main
from megascratch.config.errors import UserError
from tests.support.pretrain_runs import mock
from tests.support.random_shards import write


@pytest.fixture
def runs(tmp_path):
    """A folder with two runs, and a folder that is none."""
    for name in ("mine", "mine-2"):
        lease = Lease.acquire(tmp_path / "runs" / name / "checkpoints")
        write(lease, 4)
        write(lease, 6)
        lease.release()
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    "given", ["mine", "mine/checkpoints", "mine/checkpoints/step_00000006"], ids=str
)
def test_a_run_its_checkpoints_and_a_step_are_all_understood(runs, given):
    newest = runs / "mine" / "checkpoints" / "step_00000006"
    assert resolve(runs / given) == newest == candidates(runs / given)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "no checkpoint: {} has no folder step_00000000, nor has {}/checkpoints; did you mean {}/mine or "
         "{}/mine-2?"),
        ("notes", "no checkpoint: {}/notes has no folder step_00000000, nor has {}/notes/checkpoints"),
        ("mime", "no checkpoint: {}/mime is not a folder; did you mean {}/mine or {}/mine-2?"),
        ("quite-another", "no checkpoint: {}/quite-another is not a folder"),
    ],
)  # fmt: skip
def test_a_path_without_a_checkpoint_names_the_runs_that_are_near(runs, given, message):
    for find in (resolve, candidates):
        with pytest.raises(UserError) as refusal:
            find(runs / given)
        assert str(refusal.value) == message.replace("{}", str(runs))


def test_every_command_takes_the_folder_of_a_run(tmp_path, capsys):
    run = tmp_path / "mine"
    assert main(mock(run)) == 0
    assert main(mock(tmp_path / "more", load=run, train_iters=7)) == 0
    assert "7 steps from step 6" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "more" / "checkpoints").glob("*")] == [
        "step_00000007"
    ]
    for words in (["inspect"], ["verify"], ["prune", "--keep-last-n-checkpoints", "1"]):
        assert main(["checkpoint", *words, str(run)]) == 0
        assert str(run / "checkpoints") in capsys.readouterr().out or words[0] != "verify"


def test_a_checkpoint_that_is_not_there_yet_names_the_flag_for_both_starts(tmp_path, capsys):
    assert main(mock(tmp_path / "new", load=tmp_path / "none")) == 2
    assert "give --auto-resume instead" in capsys.readouterr().err
