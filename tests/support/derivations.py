"""Counts how often each process of a run derives its settings, seen from outside: every Python process that is started
loads a `sitecustomize` which notes the calls in a file.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTES_CALLS = """
import os
from megascratch.config import resolve
plain = resolve.derive
def noted(given, world_size):
    with open(os.environ["DERIVATIONS"], "a") as file:
        file.write(f"{os.getpid()}\\n")
    return plain(given, world_size)
resolve.derive = noted
"""


def derivations_of(folder: Path, words: list[str]) -> list[int]:
    """Runs `megascratch WORDS` in an empty folder. Returns: the number of derivations in each process that made any."""
    (folder / "sitecustomize.py").write_text(NOTES_CALLS)
    work = folder / "work"
    work.mkdir()
    notes = folder / "derivations"
    done = subprocess.run(
        [sys.executable, "-m", "megascratch", *words],
        capture_output=True,
        text=True,
        cwd=work,
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "DERIVATIONS": str(notes)},
    )
    assert done.returncode == 0, done.stderr
    return sorted(Counter(notes.read_text().split()).values())
