"""Differences between a run and its resume, and ranks that start together."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.support.corpora import write
from tests.support.pretrain_runs import ENVIRONMENT, ROOT, flags

TEXT = [np.arange(40 + i) % 61 for i in range(30)]
RUN = "import sys; from megascratch.commands import main; "
OTHER_VERSION = "from importlib import metadata as m; m.version = lambda name: '0.1'; "
OTHER_HOST = "import socket; socket.gethostname = lambda: 'node-b'; "
DIFFERENCES = {
    "a setting": (["--adam-eps", "1e-7"], "", None, ("setting adam_eps", "1e-08", "1e-07")),
    "a package's version": ([], OTHER_VERSION, None, ("version torch", "0.1")),
    "a file": ([], "", "other", ("file corpus.bin", "file corpus.idx")),
    "a file that is missing": (
        [],
        "",
        "empty",
        ("node-b (rank 1): index corpus.idx cannot be read",),
    ),
}


def launch(folder: Path, port: int, rank: int, words: list[str], change: str) -> subprocess.Popen:
    where = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    code = f"{change}{RUN}sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=ENVIRONMENT | where,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def started_together(tmp_path: Path, difference: str) -> list[tuple[int, str, float]]:
    """(exit code, what it said, seconds) of each of two ranks, of which the second differs."""
    extra, change, place, _ = DIFFERENCES[difference]
    for name in ("same", "other", "empty"):
        (tmp_path / name).mkdir()
    write(tmp_path / "same" / "corpus", TEXT)
    write(tmp_path / "other" / "corpus", TEXT[1:])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = flags(tmp_path / "out", data_path="corpus", split="1,0,0")
    begin = time.monotonic()
    ranks = [
        launch(tmp_path / "same", port, 0, words, ""),
        launch(tmp_path / (place or "same"), port, 1, [*words, *extra], change + OTHER_HOST),
    ]
    said = [rank.communicate(timeout=600)[1] for rank in ranks]
    return [
        (rank.returncode, text, time.monotonic() - begin)
        for rank, text in zip(ranks, said, strict=True)
    ]
