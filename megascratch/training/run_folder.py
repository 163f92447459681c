"""Writes how a run was started into its folder, on the first rank:

    config.yaml    all settings, as --print-config prints them: `--config` takes the file
    command.txt    the command of each start, to be pasted into a shell
    run.json       {"starts": [{"time": ..., "from_step": 0, "ranks": 2, "hosts": {...}, "versions": {...}, ...}, ...]}

A resume adds to command.txt and run.json. As any report, they are replaced atomically, and an error does not stop the
run.
"""

import json
import os
import shlex
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.config.json_record import OBJECT, TEXT, list_of, misfit, parse_json
from megascratch.runtime.atomic_file import write_atomically
from megascratch.runtime.versions import versions
from megascratch.training.report_files import set_aside

CONFIG = "config.yaml"
COMMAND = "command.txt"
RUN = "run.json"

VARIABLES = (
    "CUBLAS_", "CUDA_", "GLOO_", "KMP_", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "MEGASCRATCH_FAULT", "MKL_", "NCCL_", "OMP_", "PYTHONPATH", "PYTORCH_", "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "TORCH_", "VIRTUAL_ENV", "WORLD_SIZE",
)  # fmt: skip
"""The beginnings of the environment variables that are kept: those that change a run. Keys and tokens are not."""


class RunStart(NamedTuple):
    """How a run is started this time."""

    command: str
    """As the user gave it; '' from Python."""
    config: str
    """All settings, as YAML."""
    launch: float
    """time.time() when the launcher, or else this process, began: the same in all restarts of one launch."""
    from_step: int
    hosts: Sequence[str]
    """The host of each rank."""
    device: str


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def record_start(folder: Path, start: RunStart) -> str:
    """Writes the three files. Returns: the id of the run, which is the same whenever it resumes. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    starts, damage = _starts(folder / RUN)
    if damage:
        set_aside(folder / RUN)
    before = starts[-1] if starts else {}
    resumes = start.from_step > 0 or before.get("launch") == start.launch
    name = before.get("run") if resumes else None
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record = {
        "run": name or uuid.uuid4().hex[:12],
        "time": now,
        "from_step": start.from_step,
        "command": start.command,
        "directory": os.getcwd(),
        "ranks": len(start.hosts),
        "hosts": dict(Counter(start.hosts)),
        "device": start.device,
        "versions": versions(),
        "environment": relevant(os.environ),
        "launch": start.launch,
    }
    write_atomically(folder / RUN, json.dumps({"starts": [*starts, record]}, indent=2) + "\n")
    write_atomically(folder / CONFIG, start.config + "\n")
    if start.command:
        line = f"cd {shlex.quote(os.getcwd())} && {start.command}  # {now}, from step {start.from_step}\n"
        write_atomically(folder / COMMAND, _text(folder / COMMAND) + line)
    return str(record["run"])


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change a run, in the order of their names."""
    return {name: environment[name] for name in sorted(environment) if name.startswith(VARIABLES)}


def _starts(file: Path) -> tuple[list[dict[str, Any]], bool]:
    """The records of earlier starts, and whether the file is damaged."""
    try:
        record = parse_json(file.read_bytes())
    except FileNotFoundError:
        return [], False
    except ValueError:
        return [], True
    if not isinstance(record, dict) or misfit(record, {"starts": list_of(OBJECT)}):
        return [], True
    starts = record.get("starts", [])
    return starts, any(misfit(start, {"run": TEXT}) for start in starts)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
