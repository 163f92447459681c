"""The folder of a run: what it holds after a run that is finished, interrupted, killed or resumed, and nothing else."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from megascratch.commands import main
from megascratch.config import exit_codes
from megascratch.training.run_folder import RunStart, record_start, relevant
from tests.support.pretrain_runs import ENVIRONMENT, ROOT, command, curve, mock

ALWAYS = {"command.txt", "config.yaml", "log.txt", "loss.png", "metrics.jsonl", "run.json", "summary.json"}  # fmt: skip


def files(folder: Path) -> set[str]:
    """All files and empty folders below a folder. Event files, and the files of a step, count as one."""
    found = set()
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() or not any(path.iterdir()):
            for whole in ("tensorboard", "checkpoints/step_00000002", "checkpoints/step_00000006"):
                name = whole if name.startswith(whole + "/") else name
            found.add(name)
    return found


def starts(folder: Path) -> list[dict]:
    return json.loads((folder / "run.json").read_text())["starts"]


def test_a_stopped_and_a_resumed_run_leave_these_files_and_no_other(tmp_path):
    assert main(mock(tmp_path, exit_interval=2)) == exit_codes.EXIT_INTERVAL
    assert files(tmp_path) == ALWAYS | {"tensorboard", "checkpoints/step_00000002"}
    assert main(mock(tmp_path, auto_resume=True)) == 0
    assert files(tmp_path) == ALWAYS | {
        "tensorboard",
        "checkpoints/step_00000002",
        "checkpoints/step_00000006",
    }
    assert [start["from_step"] for start in starts(tmp_path)] == [0, 2]
    assert len({start["run"] for start in starts(tmp_path)}) == 1, "it is one run"


def test_a_killed_run_that_is_resumed_leaves_no_other_files(tmp_path):
    words = mock(tmp_path, save_interval=2, keep_last_n_checkpoints=1, auto_resume=True)
    fault = {"MEGASCRATCH_FAULT": "save.begin:0:2:kill"}
    killed = subprocess.run(command(words), cwd=ROOT, env=ENVIRONMENT | fault, timeout=300)
    assert killed.returncode == -9
    assert main(words) == 0
    assert files(tmp_path) == ALWAYS | {"tensorboard", "checkpoints/step_00000006"}
    assert (tmp_path / "log.txt").read_text().count(" start from step ") == 2


def test_its_settings_repeat_the_run_on_another_number_of_ranks_and_its_command_can_be_pasted(
    tmp_path,
):
    """Also where the name of the folder has a space and a quote."""
    folder = tmp_path / "it's mine"
    words = [*mock(tmp_path), "--nproc-per-node", "2"]
    words[words.index("--output-dir") + 1] = str(folder)
    assert subprocess.run(command(words), cwd=ROOT, env=ENVIRONMENT, timeout=300).returncode == 0
    line = (folder / "command.txt").read_text()
    assert shlex.split(line, comments=True) == ["cd", str(ROOT), "&&", "megascratch", *words]
    again = ["--config", str(folder / "config.yaml"), "--output-dir", str(tmp_path / "again")]
    assert main(["pretrain", *again]) == 0
    assert len(curve(folder)) == 6
    for one, other in zip(curve(folder), curve(tmp_path / "again"), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_the_log_has_what_was_printed_with_the_time_and_a_refused_start_writes_nothing(
    tmp_path, capsys
):
    assert main(mock(tmp_path, exit_interval=2)) == exit_codes.EXIT_INTERVAL
    said = capsys.readouterr().out.splitlines()
    log = (tmp_path / "log.txt").read_text()
    assert [line.split(" ", 2)[2] for line in log.splitlines()][1:] == said
    assert main(mock(tmp_path)) == 2
    assert (tmp_path / "log.txt").read_text() == log and len(starts(tmp_path)) == 1


START = RunStart(
    "", "optim:\n  lr: 0.1", launch=1.0, from_step=0, hosts=["a", "b", "a"], device="cpu"
)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"starts": 3}', b'{"starts": [{"run": 5}]}', b"\xff"])  # fmt: skip
def test_a_damaged_record_of_the_run_is_kept_beside_a_new_one(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    record_start(tmp_path, START)
    assert (tmp_path / "run.json.damaged").read_bytes() == content
    assert starts(tmp_path)[-1]["hosts"] == {"a": 2, "b": 1}


def test_a_new_run_in_the_folder_has_a_new_id_and_a_restart_or_a_resume_the_same(tmp_path):
    first = record_start(tmp_path, START)
    assert record_start(tmp_path, START) == first, "restarted before its first checkpoint"
    assert record_start(tmp_path, START._replace(launch=2.0, from_step=4)) == first, "resumed"
    assert record_start(tmp_path, START._replace(launch=3.0)) != first


def test_files_that_cannot_be_written_stop_no_run(tmp_path, capsys):
    for name in ("run.json", "log.txt", "loss.png", "config.yaml"):
        (tmp_path / name).mkdir()
    assert main(mock(tmp_path, train_iters=1, lr_decay_iters=1, lr_warmup_iters=0)) == 0
    said = capsys.readouterr()
    assert "the log cannot be written" in said.err and "cannot be written" in said.out
    assert "Traceback" not in said.out + said.err and "loss.png |" not in said.out


def test_keys_and_tokens_of_the_environment_are_not_kept():
    secrets = {"WANDB_API_KEY": "k", "AWS_SECRET_ACCESS_KEY": "k", "HF_TOKEN": "k", "SLURM_JWT": "k"}  # fmt: skip
    known = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7"}
    assert relevant({**secrets, **known, "HOME": "/root"}) == known
