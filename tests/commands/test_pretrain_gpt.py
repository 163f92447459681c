"""`tools/pretrain_gpt.py` trains from a command line of Megatron-LM, under each way to start ranks."""

import json
import runpy
import subprocess
import sys

import pytest

from tests.support.pretrain_runs import ENVIRONMENT, ROOT

TOOL = str(ROOT / "tools" / "pretrain_gpt.py")
MODEL = "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --vocab-size 61"
RUN = (
    "--seq-length 16 --max-position-embeddings 16 --micro-batch-size 1 --global-batch-size 2 "
    "--train-iters 2 --lr 1e-3 --mock-data --tokenizer-type NullTokenizer --log-interval 1 "
    "--transformer-impl local --no-rope-fusion --disable-bias-linear"
)
WORDS = [*MODEL.split(), *RUN.split()]


def run(monkeypatch, *words: str) -> int | str | None:
    """The exit code of the tool, in this process."""
    monkeypatch.setattr(sys, "argv", [TOOL, *WORDS, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(TOOL, run_name="__main__")
    return ended.value.code


def losses(folder) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_it_trains_without_a_config_file_and_starts_fresh_from_an_empty_folder(
    tmp_path, monkeypatch, capsys
):
    """A stop that was asked for ends with 0, and the same command goes on from there."""
    checkpoints = str(tmp_path / "ck")
    words = ["--output-dir", str(tmp_path), "--save", checkpoints, "--load", checkpoints]
    assert run(monkeypatch, *words, "--exit-interval", "1") == 0
    assert len(losses(tmp_path)) == 1
    assert run(monkeypatch, *words) == 0
    assert len(losses(tmp_path)) == 2
    said = capsys.readouterr()
    assert (
        "2 flags have no effect here: --transformer-impl, --no-rope-fusion" in said.err + said.out
    )


def test_what_is_missing_is_named_before_any_rank_starts(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--nproc-per-node", "2", "--num-experts", "8", "--swiglo") == 2
    said = capsys.readouterr().err
    assert "mixture of experts: not there yet (needed by --num-experts 8)" in said
    assert "unknown flag --swiglo - did you mean --swiglu?" in said


@pytest.mark.deep
@pytest.mark.parametrize("launcher", ["torchrun", "its own"])
def test_two_ranks_are_started_by_torchrun_or_by_the_tool_itself(tmp_path, launcher):
    start = [sys.executable, TOOL, "--nproc-per-node", "2"]
    if launcher == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", "2", TOOL]
    words = [*WORDS, "--tensor-model-parallel-size", "2", "--sequence-parallel"]
    found = subprocess.run(
        [*start, *words, "--output-dir", str(tmp_path)],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert len(losses(tmp_path)) == 2
