"""`megascratch pretrain`: trains a model, as one rank or as the launcher of all ranks.

Started by torchrun, this process is one rank; otherwise it is the only rank. With --nproc-per-node N it first checks
settings and files, without torch, then starts N ranks on this machine, monitors them, and restarts them if one dies
or hangs (--max-restarts). With --nnodes it does this together with other machines, through torchrun.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import Problems, UserError
from megascratch.config.exit_codes import own_process
from megascratch.config.fields import flat
from megascratch.config.load import print_notices, read_config
from megascratch.config.resolve import Found, ResolvedTraining
from megascratch.config.resume_rules import rules
from megascratch.config.settings import ParallelConfig
from megascratch.runtime.launch_environment import launch_environment
from megascratch.runtime.run_log import FILE as LOG
from megascratch.supervision.launch import LaunchConfig, launch
from megascratch.supervision.multi_node import COMMAND, Nodes, launch_node
from megascratch.training.sinks.sink import missing_libraries
from megascratch.training.start.checkpoint_args import with_checkpoint_args
from megascratch.training.start.files import missing_files
from megascratch.training.start.inputs import open_inputs
from megascratch.training.start.settings import legal_settings
from megascratch.verification.scale_down import scaled_down

NEED_NNODES = ("--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--local-addr")


class Start(NamedTuple):
    """The flags of the launcher, and the words that are settings."""

    ranks: int  # 0: this process is a rank itself
    max_restarts: int
    nnodes: str | None
    endpoint: str | None  # --rdzv-endpoint
    run: str | None  # --rdzv-id
    settings: str | None  # --rdzv-conf
    local_addr: str | None
    words: list[str]

    @property
    def world(self) -> int:
        """World size; the largest possible one in a launcher with --nnodes MIN:MAX."""
        if not self.ranks:
            return launch_environment().world_size
        return self.ranks * int((self.nnodes or "1").split(":")[-1])


def main(options: argparse.Namespace) -> int:
    """Runs the command; the exit codes are those of `config.exit_codes`."""
    if options.print_resume_rules:
        print(rules())
        return 0
    start = start_of(options)
    loaded = with_checkpoint_args(read_config(start.words))
    if options.scale_down:
        loaded = scaled_down(loaded, start.world)
    if not start.ranks or loaded.origins.print_config:  # else the first rank prints them
        print_notices(loaded.origins)
    if loaded.origins.print_config:
        # a dry run, which imports torch
        from megascratch.commands.print_config import print_config

        knows_ranks = start.ranks or start.world > 1 or options.scale_down
        print_config(loaded, start.world if knows_ranks else None)
        return 0
    settings = legal_settings(loaded, start.world)
    problems = Problems()
    problems.lines += missing_files(flat(settings.config))
    problems.lines += missing_libraries(settings.config.training.log_to or ())
    if start.ranks or "WORLD_SIZE" not in os.environ:
        # a rank tells the others what is wrong before it ends
        problems.require_none()
        config = open_inputs(settings, Found(), problems).config
    if start.ranks:
        keeps_batch = settings.given["global_batch_size"] is None
        command = _command(options.argv)
        if options.scale_down:
            start.words.append("--scale-down")  # each rank scales the same config down
        return _launched(start, command, config.parallel, config.training, keeps_batch)
    # imports torch, so it comes after the checks
    from megascratch.training.pretrain import pretrain

    return pretrain(settings, problems, os.environ.get(COMMAND) or _command(options.argv))


def _command(argv: Sequence[str]) -> str:
    """The command as it can be typed again."""
    return shlex.join(["megascratch", "pretrain", *argv])


def _launched(
    start: Start,
    command: str,
    parallel: ParallelConfig,
    training: ResolvedTraining,
    keeps_batch: bool,
) -> int:
    """Starts the ranks of this machine and monitors them.

    Args:
        command: the user's, for the folder of the run.
        keeps_batch: pass on the derived global batch size, so that it does not change if a machine is missing.

    Returns: the exit code of the run.
    """
    sys.stdout.flush()
    words = ["pretrain", *start.words]
    if start.max_restarts and not training.auto_resume:
        words.append("--auto-resume")  # a restarted rank resumes from the newest checkpoint
    if start.nnodes is None:
        return launch(
            LaunchConfig(
                target=partial(run_rank, words, command),
                ranks=start.ranks,
                max_restarts=start.max_restarts,
                limit=60 * parallel.distributed_timeout_minutes,
                reports=Path(training.output_dir, "faults"),
                preload=("megascratch.commands.pretrain", "megascratch.training.pretrain"),
            )
        )
    if keeps_batch:
        words += ["--global-batch-size", str(training.global_batch_size)]
    log = Path(training.output_dir, LOG)
    return launch_node(nodes_of(start, words, command, log))


def nodes_of(start: Start, words: list[str], command: str, log: Path) -> Nodes:
    """The arguments of torchrun on this machine."""
    assert start.nnodes and start.endpoint and start.run
    return Nodes(
        start.nnodes,
        start.ranks,
        start.max_restarts,
        start.endpoint,
        start.run,
        start.settings,
        start.local_addr,
        words,
        command,
        log,
    )


def run_rank(words: list[str], typed: str) -> int:
    """Runs one rank, exactly as if torchrun had started it. `typed`: the command of the launcher."""
    from megascratch.commands import main as command  # that module imports this one as a command

    own_process()
    os.environ[COMMAND] = typed
    return command(words)


def start_of(options: argparse.Namespace) -> Start:
    """What the flags of the launcher ask for. Raises: UserError if they do not fit together, or under torchrun."""
    flags = ["nproc_per_node", "max_restarts", "nnodes"]
    flags += [name[2:].replace("-", "_") for name in NEED_NNODES]
    given = [name for name in flags if getattr(options, name) is not None]
    if given and "WORLD_SIZE" in os.environ:
        flag = given[0].replace("_", "-")
        raise UserError(
            f"--{flag} starts ranks, but torchrun has already started this one: remove it, or do not use torchrun"
        )
    _check_rendezvous(options)
    ranks = options.nproc_per_node or (1 if options.max_restarts or options.nnodes else 0)
    return Start(
        ranks,
        options.max_restarts or 0,
        options.nnodes,
        options.rdzv_endpoint,
        options.rdzv_id,
        options.rdzv_conf,
        options.local_addr,
        options.settings,
    )


def _check_rendezvous(options: argparse.Namespace) -> None:
    """Checks the rendezvous flags. Raises: UserError if one is missing, or given without --nnodes."""
    if options.nnodes is None:
        for flag in NEED_NNODES:
            if getattr(options, flag[2:].replace("-", "_")) is not None:
                raise UserError(f"{flag} is for several machines: it needs --nnodes")
        return
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", options.nnodes):
        raise UserError(
            f"--nnodes ({options.nnodes}) must be a number of machines, or MIN:MAX, e.g. 4 or 3:4"
        )
    needed = {"--rdzv-endpoint HOST:PORT": options.rdzv_endpoint, "--rdzv-id NAME": options.rdzv_id}
    missing = [flag for flag, value in needed.items() if not value]
    if missing:
        raise UserError(f"--nnodes needs {' and '.join(missing)}, the same on all machines")
