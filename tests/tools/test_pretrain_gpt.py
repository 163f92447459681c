"""`tools/pretrain_gpt.py` trains with the flags of Megatron-LM's dense example scripts, sizes appended."""

import shlex
import subprocess
import sys

import pytest

from tests.support.megatron_scripts import GPT3, LLAMA3, LLAMA3_MOCK, SMALL
from tests.support.pretrain_runs import ROOT, losses

TWO_WIDE = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 1"
TWO_DEEP = "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 2"
SCRIPT = str(ROOT / "tools/pretrain_gpt.py")
OWN = [sys.executable, SCRIPT, "--nproc-per-node", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", SCRIPT]
OF_GPT3 = (
    "--global-batch-size 4 --step-batch-size-schedule 0:2 128:4 --train-iters 3 --lr-decay-iters 3"
)
OF_LLAMA3 = """--global-batch-size 4 --num-query-groups 2 --kv-channels 16
--train-samples 12 --lr-decay-samples 12 --lr-warmup-samples 4"""


def trained(folder, started: list[str], *lines: str) -> subprocess.CompletedProcess:
    """The run of a script's flags with synthetic data, to whose end flags are appended."""
    words = shlex.split(" ".join(lines).replace("--data-path data", "--mock-data"))
    return subprocess.run(
        [*started, *words, "--output-dir", str(folder / "run")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "started, line, sizes",
    [
        (OWN, GPT3, f"{TWO_WIDE} {OF_GPT3}"),
        pytest.param(TORCHRUN, GPT3, f"{TWO_DEEP} {OF_GPT3}", marks=pytest.mark.deep),
        pytest.param(OWN, LLAMA3_MOCK, f"{TWO_WIDE} {OF_LLAMA3}", marks=pytest.mark.deep),
        pytest.param(TORCHRUN, LLAMA3, f"{TWO_DEEP} {OF_LLAMA3}", marks=pytest.mark.deep),
    ],
    ids=["gpt3", "gpt3-torchrun", "llama3-mock", "llama3-torchrun"],
)
def test_the_dense_scripts_train_three_steps_on_two_ranks(tmp_path, started, line, sizes):
    done = trained(tmp_path, started, line, SMALL, sizes)
    assert done.returncode == 0, done.stderr
    steps = [row for row in losses(tmp_path / "run") if "grad_norm" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert done.stderr.count("FP8") == ("--fp8-format" in line)
