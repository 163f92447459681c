"""`megascratch pretrain`: settings in, a trained model out.

Started by torchrun it is one rank; alone it is the only one. With --nproc-per-node N it checks settings and files
first, without torch, and then starts N ranks on this machine, watches them, and starts them again when one dies or
hangs (--max-restarts).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megascratch.config.derive import derive
from megascratch.config.errors import SettingError, UserError
from megascratch.config.laws import broken_laws, validate
from megascratch.config.load import format_config, read_config
from megascratch.config.notices import notices
from megascratch.config.resume import rules
from megascratch.config.settings import Config
from megascratch.supervision.launch import Plan, launch
from megascratch.training.inputs import missing_files, open_inputs

HELP = """\
--nproc-per-node N   check settings and files, then start N ranks on this machine and watch them
--max-restarts N     start all ranks again, from the newest checkpoint, up to N times when one dies or hangs
--print-resume-rules print what may change when a run goes on from a checkpoint, and stop
"""


class _Start(NamedTuple):
    """What the command line says beside the settings."""

    ranks: int  # 0: this process is a rank itself
    max_restarts: int
    words: list[str]


def main(argv: Sequence[str]) -> int:
    """Trains as the flags and the YAML file say; the exit codes are those of `config.endings`."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
    if "--print-resume-rules" in argv:
        print(rules())
        return 0
    start = _start(argv)
    world = start.ranks or int(os.environ.get("WORLD_SIZE", "1"))
    given, origins, problems, unread = read_config(start.words)
    config = derive(given, world)
    problems += broken_laws(config, world, unread)
    if problems:
        raise SettingError("\n".join([*problems, *missing_files(config)]))
    if origins.print_config:
        print(format_config(config, origins))
        return 0
    if start.ranks:
        open_inputs(config)
        sys.stdout.flush()
        return launch(_plan(start, config))
    if os.environ.get("RANK", "0") == "0":
        for notice in notices(config):
            print(f"notice: {notice}", file=sys.stderr)
    from megascratch.training.pretrain import pretrain  # imports torch: settings are judged before that
    from megascratch.training.resuming import resumed

    config = derive(resumed(given, config.training), world)
    validate(config, world)
    return pretrain(config)


def _plan(start: _Start, config: Config) -> Plan:
    words = start.words
    if start.max_restarts and not config.training.auto_resume:
        words = [*words, "--auto-resume"]
    return Plan(
        target=partial(_rank, ["pretrain", *words]),
        ranks=start.ranks,
        max_restarts=start.max_restarts,
        limit=60 * config.parallel.distributed_timeout_minutes,
        reports=Path(config.training.output_dir, "faults"),
        preload=("megascratch.commands.pretrain", "megascratch.training.pretrain"),
    )


def _rank(words: list[str]) -> int:
    """What every started rank does: the same as if torchrun had started it."""
    from megascratch.commands import main as command  # this module is one of its verbs

    return command(words)


def _start(argv: Sequence[str]) -> _Start:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--nproc-per-node", type=int)
    parser.add_argument("--max-restarts", type=int)
    try:
        own, words = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = str(error.argument_name).lstrip("-")
        what = "ranks" if name == "nproc-per-node" else "restarts"
        raise UserError(f"--{name} must be a number of {what}: {error.message}") from error
    given = [(name, value) for name, value in vars(own).items() if value is not None]
    if given and "WORLD_SIZE" in os.environ:
        flag = given[0][0].replace("_", "-")
        raise UserError(f"--{flag} starts ranks, but this already is one of torchrun's: give it to one of them")
    for name, least in (("nproc_per_node", 1), ("max_restarts", 0)):
        value = getattr(own, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} ({value}) must be at least {least}")
    ranks = own.nproc_per_node or (1 if own.max_restarts else 0)
    return _Start(ranks, own.max_restarts or 0, words)
