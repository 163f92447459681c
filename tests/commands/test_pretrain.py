"""What a user can mend is told before any worker starts: exit code 2, one message, and torch was not even imported."""

import subprocess
import sys

import pytest

from tests.support.refused_starts import MODEL, SHOW_TORCH

REFUSED = {
    "layout": (
        ["--mock-data", "--vocab-size", "50", "--tensor-model-parallel-size", "8"],
        "must be divisible by tensor-model",
    ),
    "world": (
        ["--mock-data", "--vocab-size", "50", "--pipeline-model-parallel-size", "3"],
        "start 3 processes",
    ),
    "no data": (["--data-path", "nowhere", "--vocab-size", "50"], "nowhere.idx cannot be read"),
    "no tokenizer": (
        ["--mock-data", "--tokenizer-model", "nowhere.model"],
        "nowhere.model: cannot be read",
    ),
    "no end of document": (
        ["--mock-data", "--vocab-size", "50", "--eod-mask-loss"],
        "need a tokenizer with an end-of-",
    ),
    "ranks": (
        ["--mock-data", "--vocab-size", "50", "--nproc-per-node", "many"],
        "--nproc-per-node (many) must be a whole number",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_that_cannot_work_ends_before_torch_is_imported(name, tmp_path):
    flags, message = REFUSED[name]
    ranks = [] if "--nproc-per-node" in flags else ["--nproc-per-node", "2"]
    command = [sys.executable, "-c", SHOW_TORCH, "pretrain", *MODEL, *ranks, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
