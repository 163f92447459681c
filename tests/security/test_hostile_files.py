"""Whoever wrote a file: reading it runs no code, opens nothing outside of its folder, and takes no more memory than it
has. SECURITY.md makes the promises.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hostile_files import HARMLESS, HOSTILE, SECRET

ROOT = Path(__file__).resolve().parents[2]
MOST_GROWN = 64 << 20  # bytes of memory for a file of at most 3 MiB


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.txt").write_text(SECRET)
    command = [sys.executable, "-m", "tests.support.read_hostile_files", str(folder)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(folder.rglob("pwned")) == [] and not (ROOT / "pwned").exists()
    return {one["name"]: one for one in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("name", [hostile.name for hostile in HOSTILE])
def test_a_hostile_file_is_refused_and_does_nothing(found, name):
    one = found[name]
    assert one["told"].startswith("read: " if name in HARMLESS else "refused: "), one
    assert one["events"] == [], one
    assert one["grown"] <= MOST_GROWN, one
    assert SECRET not in one["told"]
