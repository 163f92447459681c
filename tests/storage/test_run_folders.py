"""Where a run keeps its checkpoints, by the names of its folders alone."""

from pathlib import Path

import pytest

from megascratch.config.errors import UserError
from megascratch.storage.run_folders import checkpoints_of, is_step, require_checkpoint, step_names


def make_run(folder: Path) -> Path:
    """A run with one step and folders whose names are almost those of steps."""
    for name in ("step_00000100", "step_100", "step_00000100.partial"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    return folder


def test_a_run_a_folder_of_steps_and_a_step_are_told_apart(tmp_path):
    run = make_run(tmp_path / "mine")
    steps = run / "checkpoints"
    assert step_names(steps) == ["step_00000100"]
    assert checkpoints_of(run) == checkpoints_of(steps) == steps
    assert checkpoints_of(steps / "step_00000100") == steps / "step_00000100"
    assert is_step(steps / "step_00000100") and not is_step(steps)
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "manifest.json").touch()
    assert is_step(tmp_path / "copied")


@pytest.mark.parametrize(
    "path, says",
    [
        ("mine/nothing", "is not a folder"),
        (".", "has no folder step_00000000"),
        ("min", "did you mean"),
    ],
)
def test_a_path_without_a_checkpoint_is_refused_and_the_nearest_run_is_named(tmp_path, path, says):
    make_run(tmp_path / "mine")
    require_checkpoint(str(tmp_path / "mine"))
    with pytest.raises(UserError, match=says) as refused:
        require_checkpoint(str(tmp_path / path), "--load")
    assert str(refused.value).startswith("--load ")
