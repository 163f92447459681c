"""The tasks of a Slurm array and the merge behind them write what one process writes."""

import os
import subprocess
import sys
from pathlib import Path

from megascratch.tokenizer.simple import CharTokenizer
from tests.support.preprocess_runs import JSONL, TEXTS, content, run

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "preprocess.sbatch"


def test_an_array_and_a_merge_write_the_bytes_of_one_process(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(JSONL)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "megascratch"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m megascratch "$@" --shard-bytes 2000\n')
    command.chmod(0o755)
    (tmp_path / "characters.json").write_bytes(CharTokenizer.train(TEXTS, eod=True).dump())
    site = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "TOKENIZER": str(tmp_path / "characters.json"),
    }
    site |= {"INPUT": str(tmp_path / "*.jsonl"), "OUTPUT": str(tmp_path / "array")}
    array = {"SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "2"}
    for task in ({"SLURM_ARRAY_TASK_ID": "4", **array}, {"SLURM_ARRAY_TASK_ID": "5", **array}, {}):
        assert not list(tmp_path.glob("array_*"))
        subprocess.run(
            ["bash", SCRIPT], env={**os.environ, **site, **task}, check=True, capture_output=True
        )
    flags = [
        "--append-eod",
        "--tokenizer-type",
        "CharTokenizer",
        "--tokenizer-model",
        site["TOKENIZER"],
    ]
    assert content(tmp_path / "array_text_document") == content(
        run(tmp_path, tmp_path / "x.jsonl", flags=flags)
    )
