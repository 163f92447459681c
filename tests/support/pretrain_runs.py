"""Small runs of `megascratch pretrain` for tests: flags, metrics and saved tensors."""

import json
import os
import sys
from pathlib import Path

from megascratch.commands import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "num-layers": 2,
    "hidden-size": 32,
    "num-attention-heads": 4,
    "vocab-size": 61,
    "make-vocab-size-divisible-by": 8,
    "seq-length": 16,
    "global-batch-size": 4,
    "hidden-dropout": 0.1,
    "attention-dropout": 0.1,
    "lr": 0.01,
    "lr-warmup-iters": 3,
    "lr-decay-iters": 8,
    "lr-decay-style": "cosine",
    "weight-decay": 0.1,
    "clip-grad": 0.5,
    "train-iters": 6,
    "eval-interval": 0,
    "log-interval": 1,
    "device": "cpu",
}


def flags(folder: Path, **settings) -> list[str]:
    values = {
        **SMALL,
        "output-dir": folder,
        **{name.replace("_", "-"): value for name, value in settings.items()},
    }
    words = ["pretrain"]
    for name, value in values.items():
        words += (
            [f"--{name}"]
            if value is True
            else []
            if value is None
            else [f"--{name}", *str(value).split()]
        )
    return words


def mock(folder: Path, **settings) -> list[str]:
    return flags(folder, mock_data=True, **settings)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder: Path) -> list[tuple]:
    """What must not differ between two runs."""
    return [
        (row["step"], row["loss"], row.get("grad_norm"), row.get("learning_rate"))
        for row in losses(folder)
    ]


def losses(folder: Path) -> list[dict]:
    """The rows of training and validation."""
    return [row for row in rows(folder) if "event" not in row]


def saved(folder: Path, step: int) -> dict[str, bytes]:
    """The tensor files of a checkpoint."""
    files = (folder / "checkpoints" / f"step_{step:08}").glob("*.safetensors")
    return {file.name: file.read_bytes() for file in files}


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "megascratch", *words]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def refused(capsys, words: list[str], *told: str) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("megascratch pretrain: error: ") and "Traceback" not in said.err
    assert all(part in said.err for part in told), said.err
    assert said.out == ""
