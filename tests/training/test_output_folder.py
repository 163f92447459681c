"""Two runs that write their report into one folder: the second is refused before it starts, whatever it saves where."""

import subprocess
import sys

import pytest

from megascratch.checkpoint.backend.local_lease import Lease
from megascratch.commands import main
from tests.support.pretrain_runs import ENVIRONMENT, ROOT, command, mock, rows

HELD_AND_KILLED = """
import os, sys
from megascratch.checkpoint.backend.local_lease import Lease
Lease.acquire(sys.argv[1])
os._exit(9)
"""


def writing(folder) -> set[str]:
    """Folders of writers that have not been released."""
    return {path.name for path in folder.glob(".writer.*")}


@pytest.fixture
def held(tmp_path):
    """A folder that a live process writes its report into."""
    lease = Lease.acquire(tmp_path / "out")
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    yield tmp_path / "out"
    lease.release()


def test_a_second_run_with_one_output_dir_and_another_save_is_refused_and_touches_nothing(
    held, tmp_path, capsys
):
    assert main(mock(held, save=tmp_path / "other")) == 2
    said = capsys.readouterr().err
    assert (
        f"{held} is being written by process " in said
        and "(--output-dir)" in said
        and "Traceback" not in said
    )
    assert rows(held) == [{"step": 1, "loss": 1.0}]
    assert not (held / "summary.json").exists() and not writing(tmp_path / "other")


def test_every_layout_is_refused_in_the_same_words(held, tmp_path):
    words = [*mock(held, save=tmp_path / "other", data_parallel_size=2), "--nproc-per-node", "2"]
    done = subprocess.run(
        command(words), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and f"{held} is being written by process " in done.stderr, (
        done.stderr
    )
    assert "Traceback" not in done.stderr and rows(held) == [{"step": 1, "loss": 1.0}]


def test_the_claim_of_a_killed_process_is_no_claim_and_a_run_that_ended_leaves_none(tmp_path):
    out = tmp_path / "out"
    killed = [sys.executable, "-c", HELD_AND_KILLED, str(out)]
    assert subprocess.run(killed, cwd=ROOT, env=ENVIRONMENT, timeout=300).returncode == 9
    assert writing(out)
    assert main(mock(out, train_iters=2)) == 0
    assert not writing(out)
    assert main(mock(out, train_iters=3, auto_resume=True)) == 0
    assert [row["step"] for row in rows(out) if "event" not in row] == [1, 2, 3] and not writing(
        out
    )


def test_checkpoints_may_lie_in_the_output_folder_itself(tmp_path):
    assert main(mock(tmp_path, save=tmp_path, train_iters=1)) == 0
    assert (tmp_path / "step_00000001").is_dir() and not writing(tmp_path)


def test_a_run_that_fails_releases_the_folder(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr("megascratch.training.loop._Loop", broken)
    with pytest.raises(RuntimeError, match="broken"):
        main(mock(tmp_path, train_iters=1))
    assert not writing(tmp_path)
