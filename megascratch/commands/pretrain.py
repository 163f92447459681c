"""`megascratch pretrain`: settings in, a trained model out.

Started by torchrun it is one rank; alone it is the only one. With --nproc-per-node N it checks settings and files
first, without torch, and then starts N ranks on this machine, watches them, and starts them again when one dies or
hangs (--max-restarts). With --nnodes it does so together with other machines, through torchrun.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megascratch.config.derive import derive
from megascratch.config.errors import SettingError, UserError
from megascratch.config.exit_codes import own_process
from megascratch.config.laws import broken_laws, validate
from megascratch.config.load import format_config, read_config
from megascratch.config.notices import notices
from megascratch.config.resume_rules import rules
from megascratch.config.settings import Config
from megascratch.supervision.launch import LaunchConfig, launch
from megascratch.supervision.multi_node import Nodes, launch_node
from megascratch.training.start.inputs import missing_files, open_inputs

HELP = """\
--nproc-per-node N   check settings and files, then start N ranks on this machine and watch them
--max-restarts N     start all ranks again, from the newest checkpoint, up to N times when one dies or hangs
--nnodes N|MIN:MAX   with the same command on so many machines, through torchrun; needs
--rdzv-endpoint H:P  where they meet: a port of one of them, and
--rdzv-id NAME       the name of the run, the same on all; where addresses and names do not fit together also
--rdzv-conf K=V,...  of torchrun, e.g. is_host=1, and
--local-addr ADDRESS under which the others reach this machine
--print-resume-rules print what may change when a run goes on from a checkpoint, and stop
"""

NEED_NNODES = ("--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--local-addr")


class _Start(NamedTuple):
    """What the command line says beside the settings."""

    ranks: int  # 0: this process is a rank itself
    max_restarts: int
    nnodes: str | None
    endpoint: str | None
    run: str | None
    settings: str | None  # of the rendezvous
    local_addr: str | None
    words: list[str]

    @property
    def world(self) -> int:
        """Of the whole run, at most; a rank knows better."""
        if not self.ranks:
            return int(os.environ.get("WORLD_SIZE", "1"))
        return self.ranks * int((self.nnodes or "1").split(":")[-1])


def main(argv: Sequence[str]) -> int:
    """Trains as the flags and the YAML file say; the exit codes are those of `config.exit_codes`."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
    if "--print-resume-rules" in argv:
        print(rules())
        return 0
    start = _start(argv)
    world = start.world
    given, origins, problems, unread = read_config(start.words)
    config = derive(given, world)
    problems += broken_laws(given, world, unread)
    if problems:
        raise SettingError("\n".join([*problems, *missing_files(config)]))
    if origins.print_config:
        print(format_config(config, origins))
        return 0
    if world == 1 and (missing := missing_files(config)):
        raise UserError("\n".join(missing))
    if start.ranks:
        open_inputs(config)
        sys.stdout.flush()
        if start.nnodes is None:
            return launch(_plan(start, config))
        return launch_node(_nodes(start, config, keeps_batch=given.training.global_batch_size is None))
    if os.environ.get("RANK", "0") == "0":
        for notice in notices(config):
            print(f"notice: {notice}", file=sys.stderr)
    from megascratch.training.pretrain import pretrain  # imports torch: settings are judged before that
    from megascratch.training.start.auto_resume import resumed

    config = derive(resumed(given, config.training), world)
    validate(config, world)
    return pretrain(config)


def _plan(start: _Start, config: Config) -> LaunchConfig:
    return LaunchConfig(
        target=partial(_rank, _words(start, config)),
        ranks=start.ranks,
        max_restarts=start.max_restarts,
        limit=60 * config.parallel.distributed_timeout_minutes,
        reports=Path(config.training.output_dir, "faults"),
        preload=("megascratch.commands.pretrain", "megascratch.training.pretrain"),
    )


def _nodes(start: _Start, config: Config, keeps_batch: bool) -> Nodes:
    """`keeps_batch`: none is given, so say it: it is the same when a machine is missing."""
    assert start.nnodes and start.endpoint and start.run
    batch = ["--global-batch-size", str(config.training.global_batch_size)] if keeps_batch else []
    words = [*_words(start, config), *batch]
    return Nodes(
        start.nnodes,
        start.ranks,
        start.max_restarts,
        start.endpoint,
        start.run,
        start.settings,
        start.local_addr,
        words,
    )


def _words(start: _Start, config: Config) -> list[str]:
    """Of a rank; one that starts again goes on from the newest checkpoint."""
    again = ["--auto-resume"] if start.max_restarts and not config.training.auto_resume else []
    return ["pretrain", *start.words, *again]


def _rank(words: list[str]) -> int:
    """What every started rank does: the same as if torchrun had started it."""
    from megascratch.commands import main as command  # this module is one of its verbs

    own_process()
    return command(words)


def _start(argv: Sequence[str]) -> _Start:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--nproc-per-node", type=int)
    parser.add_argument("--max-restarts", type=int)
    for name in ("--nnodes", *NEED_NNODES):
        parser.add_argument(name)
    try:
        own, words = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = str(error.argument_name)
        what = {"--nproc-per-node": "must be a number of ranks", "--max-restarts": "must be a number of restarts"}
        raise UserError(f"{name} {what.get(name, 'needs a value')}: {error.message}") from error
    given = [name for name, value in vars(own).items() if value is not None]
    if given and "WORLD_SIZE" in os.environ:
        flag = given[0].replace("_", "-")
        raise UserError(f"--{flag} starts ranks, but this already is one of torchrun's: give it to one of them")
    for name, least in (("nproc_per_node", 1), ("max_restarts", 0)):
        value = getattr(own, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} ({value}) must be at least {least}")
    _require_meeting_point(own)
    ranks = own.nproc_per_node or (1 if own.max_restarts or own.nnodes else 0)
    return _Start(
        ranks, own.max_restarts or 0, own.nnodes, own.rdzv_endpoint, own.rdzv_id, own.rdzv_conf, own.local_addr, words
    )


def _require_meeting_point(own: argparse.Namespace) -> None:
    """Several machines need a place and a name."""
    if own.nnodes is None:
        for flag in NEED_NNODES:
            if getattr(own, flag[2:].replace("-", "_")) is not None:
                raise UserError(f"{flag} is for several machines: give --nnodes, too")
        return
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", own.nnodes):
        raise UserError(f"--nnodes ({own.nnodes}) must be a number of machines, or MIN:MAX, e.g. 4 or 3:4")
    needed = {"--rdzv-endpoint HOST:PORT": own.rdzv_endpoint, "--rdzv-id NAME": own.rdzv_id}
    missing = [flag for flag, value in needed.items() if not value]
    if missing:
        raise UserError(f"--nnodes needs {' and '.join(missing)}, the same on all machines")
