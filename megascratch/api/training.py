"""Pretraining from a program or a notebook, in its own process or on several ranks."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megascratch.api.run_config import RunConfig, config_of, flags_of
from megascratch.api.surroundings import hidden_main, kept_environment, require_main_thread
from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.config.exit_codes import BAD_INPUT, DONE, STOPS
from megascratch.runtime import faults
from megascratch.runtime.launch_environment import launch_environment
from megascratch.training.report_files import read_rows, read_summary


class RunFailed(RuntimeError):
    """A run that began and failed: a rank died or hung, communication failed, or the numbers diverged.

    `exit_code` is that of the command.
    """

    def __init__(self, exit_code: int, output_dir: str) -> None:
        reports = sorted(Path(output_dir, "faults").glob("attempt_*.txt"))
        where = f", and in {reports[-1]}" if reports else ""
        super().__init__(
            f"the run in {output_dir} failed with exit code {exit_code}: the reason is printed above{where}"
        )
        self.exit_code = exit_code


def _plain_output() -> None:
    """Ranks write into the pipes of a notebook, which asks every program for the colours of a terminal."""
    if not sys.stdout.isatty():
        for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
            os.environ.pop(name, None)


@dataclass(frozen=True)
class TrainingResult:
    """What a run has written and measured."""

    exit_code: int
    """0: the run is done; 80 ... 83 and 130: it has saved and stopped early (`config.exit_codes`)."""
    output_dir: str
    """The folder of the run, which `load` reads."""
    summary: Mapping[str, Any]
    """The content of its summary.json: steps, tokens, seconds, parameters, loss, valid_loss, ..."""

    @property
    def stopped(self) -> str | None:
        """Why the run has stopped early; None if it is done."""
        return STOPS.get(self.exit_code)

    @property
    def steps(self) -> int:
        """The steps trained so far, those of an earlier run that was resumed included."""
        return int(self.summary.get("steps", 0))

    @property
    def loss(self) -> float | None:
        """The mean training loss since the last log line, in nats per token; None if no step was trained."""
        return self.summary.get("loss")

    @property
    def valid_loss(self) -> float | None:
        """The last validation loss, in nats per token; None without a validation."""
        return self.summary.get("valid_loss")

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: each has a `step`; training rows have `loss`, `grad_norm`, `learning_rate`, ...,
        rows of a validation a `split`."""
        return read_rows(Path(self.output_dir, "metrics.jsonl")).rows


def pretrain(
    config: RunConfig | str | Path, nproc_per_node: int = 1, *, max_restarts: int = 0
) -> TrainingResult:
    """Trains a model, as `megascratch pretrain` does. Under torchrun it is the rank that torchrun has started.

    With one rank it trains in this process; with several it starts them and watches them. Ctrl-C (in a notebook:
    interrupt) saves a checkpoint and returns; a second one raises KeyboardInterrupt. Afterwards the process is as
    before: no process group, thread, signal handler or environment variable is left. Ranks run neither the caller's
    script nor its notebook, so what they need of it must be in a file that `imports` names.

    Args:
        config: settings, a preset or a YAML file.
        nproc_per_node: ranks on this machine.
        max_restarts: how often all ranks are restarted from the newest checkpoint if one dies or hangs.

    Raises:
        UserError: for what the command refuses, before anything starts.
        RunFailed: if the run began and failed.
    """
    config = config_of(config)
    require_main_thread("ms.pretrain")
    if not isinstance(nproc_per_node, int) or nproc_per_node < 1:
        raise UserError(
            f"nproc_per_node ({nproc_per_node}) must be a number of ranks: use 1 or more"
        )
    words = flags_of(config)
    alone = nproc_per_node == 1 and max_restarts == 0
    if not alone:
        words += ["--nproc-per-node", str(nproc_per_node), "--max-restarts", str(max_restarts)]
    with kept_environment():
        launch_environment().check()
        faults.check()
        if alone:
            code = call("pretrain", words)
        else:
            _plain_output()
            with hidden_main():
                code = call("pretrain", words)
    if code == BAD_INPUT:
        raise UserError("the ranks refused to start, for the reason that is printed above")
    if code != DONE and code not in STOPS:
        raise RunFailed(code, config.output_dir)
    summary = read_summary(Path(config.output_dir, "summary.json"))
    of_this_run = summary if summary.get("exit_code") == code else {}
    return TrainingResult(code, os.fspath(config.output_dir), of_this_run)
