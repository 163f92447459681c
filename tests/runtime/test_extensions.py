"""Where the C++ extensions were not built, the package imports and trains, and says so once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = """
import sys
sys.modules["megascratch.layers._cpu_kernels"] = None
sys.modules["megascratch.data.tokens._indices"] = None
"""
NOTICE = "the C++ extensions are not built"
RUN = """
--mock-data --vocab-size 64 --num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 16 --train-iters 2
--micro-batch-size 1 --global-batch-size 2 --position-embedding-type rope --swiglu --normalization RMSNorm
"""


def losses(folder: Path, hidden: bool, *flags: str) -> tuple[list[str], str]:
    """The losses of a run and all that it printed, with or without the extensions, in every process of it."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if hidden:  # Python imports this file when it starts
        (folder / "sitecustomize.py").write_text(HIDDEN)
        environment["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "megascratch", "pretrain", *RUN.split(), *flags]
    command += ["--output-dir", str(folder / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return re.findall(r"\| loss (\S+) \|", printed), printed


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_without_them_is_the_same_with_one_notice(ranks, tmp_path):
    flags = ["--nproc-per-node", str(ranks)] if ranks > 1 else []
    expected, printed = losses(tmp_path / "with", False, *flags)
    assert NOTICE not in printed and len(expected) == 2
    found, printed = losses(tmp_path / "without", True, *flags)
    assert printed.count(NOTICE) == 1, printed
    assert found == expected
