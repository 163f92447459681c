"""The flags of `megascratch doctor`."""

import argparse

from megascratch.commands.parsers.base import Parser, any_setting
from megascratch.commands.parsers.pretrain import add_launcher
from megascratch.config.errors import UserError

EXAMPLES = (
    "megascratch doctor",
    "megascratch doctor --config my.yaml --nproc-per-node 8",
    "torchrun ... -m megascratch doctor --config my.yaml",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch doctor",
        "Checks machines and settings before a run: versions, files, network, clocks, devices, disk, parameters and "
        "memory, and a small collective over every axis. Exit code 0 if a run can start, 1 if not.",
        EXAMPLES,
        "Without a setting only machines are checked. Start it on all machines like the run, with the same flags.",
        settings_help=any_setting,
        check=_check,
    )
    made.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long ranks wait for each other (default: 60)",
    )
    add_launcher(made)
    return made


def _check(options: argparse.Namespace) -> None:
    if not options.timeout > 0:
        raise UserError(f"--timeout ({options.timeout:g}) must be above 0")
