"""Counts how often each process of a run calls a function, seen from outside: every Python process that is started
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
from functools import wraps
from importlib import import_module

def note(module, name):
    plain = getattr(module, name)
    @wraps(plain)
    def noted(*args, **named):
        with open(os.environ["NOTED_CALLS"], "a") as file:
            file.write(f"{name} {os.getpid()}\\n")
        return plain(*args, **named)
    setattr(module, name, noted)

for place in os.environ["TO_NOTE"].split():
    module, name = place.split(":")
    note(import_module(module), name)
"""


def noted_calls(folder: Path, words: list[str], functions: list[str]) -> dict[str, list[int]]:
    """Runs `megascratch WORDS` in an empty folder.

    Args:
        functions: MODULE:NAME of each function to note, which other modules import by its name.

    Returns: function -> the number of its calls in each process that calls it.
    """
    (folder / "sitecustomize.py").write_text(NOTES_CALLS)
    work = folder / "work"
    work.mkdir()
    notes = folder / "calls"
    settings = {
        "PYTHONPATH": f"{folder}:{ROOT}",
        "NOTED_CALLS": str(notes),
        "TO_NOTE": " ".join(functions),
    }
    done = subprocess.run(
        [sys.executable, "-m", "megascratch", *words],
        capture_output=True,
        text=True,
        cwd=work,
        env=os.environ | settings,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[int]] = {}
    for call, times in Counter(notes.read_text().splitlines()).items():
        found.setdefault(call.split()[0], []).append(times)
    return found
