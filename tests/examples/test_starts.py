"""The ways to start a run on several machines give the same flags, and do with its exit code what it means."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from megascratch.commands import main
from megascratch.commands.parsers.pretrain import parser
from megascratch.commands.pretrain import start_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (1, False), (2, False), (81, True), (82, False), (83, True)]
)
def test_the_slurm_job_goes_back_into_the_queue_when_it_has_saved_and_is_not_done(
    tmp_path, code, requeued
):
    command(tmp_path / "bin/srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    command(
        tmp_path / "bin/scontrol",
        f'[[ $1 == show ]] && echo "node7 node8" | tr " " "\\n" || echo "$@" > {tmp_path}/asked',
    )
    command(tmp_path / "bin/megascratch", f'printf "%s\\n" "$@" > {tmp_path}/words; exit {code}')
    slurm = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "42",
        "SLURM_GPUS_ON_NODE": "8",
    }
    done = subprocess.run(
        ["bash", EXAMPLES / "slurm" / "pretrain.sbatch"],
        capture_output=True,
        text=True,
        env={**os.environ, **slurm, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
    )
    assert done.returncode == (0 if requeued else code), done.stderr
    assert (tmp_path / "asked").exists() == requeued
    words = (tmp_path / "words").read_text().split()
    start = start_of(parser().read(words[1:]))
    assert words[0] == "pretrain" and (start.ranks, start.nnodes, start.endpoint) == (
        8,
        "2",
        "node7:29500",
    )


def test_the_slurm_job_passes_the_warning_of_its_time_limit_on(tmp_path):
    command(
        tmp_path / "bin/srun",
        f'echo $$ > {tmp_path}/pid; trap "exit 83" USR1; touch {tmp_path}/ready; while :; do sleep 0.05; done',
    )
    command(
        tmp_path / "bin/scontrol", f'[[ $1 == show ]] && echo node7 || echo "$@" > {tmp_path}/asked'
    )
    command(tmp_path / "bin/scancel", f"kill -USR1 $(cat {tmp_path}/pid)")
    slurm = {
        "SLURM_JOB_NODELIST": "node7",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "42",
        "SLURM_GPUS_ON_NODE": "8",
    }
    wait = f"until [[ -e {tmp_path}/ready ]]; do sleep 0.05; done"
    ready = f"bash {EXAMPLES}/slurm/pretrain.sbatch & job=$!; {wait}; kill -USR1 $job; wait $job"
    done = subprocess.run(
        ["bash", "-c", ready],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        timeout=600,
    )
    assert done.returncode == 0 and (tmp_path / "asked").read_text() == "requeue 42\n"


def test_the_ssh_script_starts_every_machine_with_one_meeting_point(tmp_path):
    command(tmp_path / "ssh", f'echo "$1" >> {tmp_path}/hosts; bash -c "$2"')
    command(tmp_path / ".venv/bin/megascratch", f'echo "$*" >> {tmp_path}/words; exit 83')
    site = {"HOSTS": "a b", "SSH": str(tmp_path / "ssh"), "RANKS": "2"}
    done = subprocess.run(
        ["bash", EXAMPLES / "ssh" / "pretrain.sh"],
        env={**os.environ, **site},
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 83 and sorted((tmp_path / "hosts").read_text().split()) == ["a", "b"]
    first, second = (tmp_path / "words").read_text().splitlines()
    start = start_of(parser().read(first.split()[1:]))
    assert first == second and (start.ranks, start.nnodes, start.endpoint) == (2, "2", "a:29500")


def test_the_kubernetes_job_starts_the_same_command():
    text = (EXAMPLES / "kubernetes" / "pretrain.yaml").read_text()
    start = start_of(parser().read(re.findall(r"^ +- (--\S+)$", text, flags=re.MULTILINE)))
    assert (start.ranks, start.nnodes, start.endpoint, start.run) == (
        8,
        "4",
        "pretrain-0.pretrain:29500",
        "pretrain",
    )
    assert start.words == ["--config=llama3-8b", "--config=/config/pretrain.yaml"]


def test_the_one_config_is_legal(capsys):
    assert (
        main(
            [
                "pretrain",
                "--config",
                "llama3-8b",
                str(EXAMPLES / "pretrain.yaml"),
                "--nproc-per-node",
                "8",
                "--print-config",
            ]
        )
        == 0
    )
    assert "auto_resume: true" in capsys.readouterr().out
