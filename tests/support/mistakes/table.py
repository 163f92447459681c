"""All mistakes, and the runs of them that a test or a benchmark shares."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.mistakes.config_files import CONFIG_ROWS
from tests.support.mistakes.forty import FORTY
from tests.support.mistakes.megatron import MEGATRON_ROWS
from tests.support.mistakes.patterns import PATTERN_ROWS
from tests.support.mistakes.runs import RUN_ROWS
from tests.support.mistakes.settings import SETTINGS_ROWS
from tests.support.mistakes.verbs import VERB_ROWS

ROOT = Path(__file__).resolve().parents[3]
TABLE = [*FORTY, *SETTINGS_ROWS, *PATTERN_ROWS, *CONFIG_ROWS, *RUN_ROWS, *VERB_ROWS, *MEGATRON_ROWS]


def sweep(folder: Path, *flags: str) -> dict[str, list[str]]:
    """What is wrong with the answers to wrong values (`sweep.failures`), by group."""
    return _json(sys.executable, "-m", "tests.support.mistakes.sweep", str(folder), *flags)


def real_fixes(world: Path) -> dict[str, dict[str, Any]]:
    """Name of a row -> the answers of a process in which every fix trains."""
    return _json(
        sys.executable, "-m", "tests.support.mistakes.judge", str(world), "--torch", "--real"
    )


def answers(world: Path) -> dict[str, dict[str, Any]]:
    """Name of a row -> its answers (`judge.Judge.answers`), from two processes: one of them never imports torch."""
    judge = [sys.executable, "-m", "tests.support.mistakes.judge", str(world)]
    with_torch = _json(*judge, "--torch")
    without_torch = _json(*judge)
    found = {}
    for name in with_torch.keys() | without_torch.keys():
        found[name] = with_torch.get(name, {}) | without_torch.get(
            name, {}
        )  # a fix may be of the other one
    return found


def _json(*command: str) -> Any:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
