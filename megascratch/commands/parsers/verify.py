"""The flags of `megascratch verify`."""

import argparse
from typing import Any

from megascratch.commands.parsers.base import Parser, any_setting
from megascratch.commands.parsers.shared import require_folder_of
from megascratch.config.errors import UserError

MOST_RANKS = 8  # of --scale-down
NOTE = (
    "The config is shrunk (same kinds of layers, same layout rules, small widths) and trained in one process and on "
    "the layout. Then loss, gradient norm, every gradient and every weight are compared. --seed S also selects the "
    "layouts of --random. With --max-world, layout settings from flags are kept, and those from the file are replaced."
)
EXAMPLES = (
    "megascratch verify --config my.yaml --tensor-model-parallel-size 2",
    "megascratch verify --config my.yaml --max-world 4 --random 10",
)


class _Once(argparse.Action):
    """A flag that may be given only once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) != self.default:
            parser.error(f"{option_string} is given twice: give it once")
        setattr(namespace, self.dest, values)


def _check(options: argparse.Namespace) -> None:
    for name in ("steps", "max_world", "random", "timeout"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} ({value}) must be above 0")
    for other, given in (("--max-world", options.max_world), ("--full-size", options.full_size)):
        if options.scale_down and given:
            raise UserError(
                f"--scale-down moves the config's own layout to fewer ranks, and {other} asks for another: keep one"
            )
    if options.random is not None and options.max_world is None:
        raise UserError(
            f"--random ({options.random}) needs --max-world, the largest number of ranks"
        )
    require_folder_of("--json", options.json)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch verify",
        "Checks with your own config that a layout computes the same model as one process.",
        EXAMPLES,
        NOTE,
        settings_help=any_setting,
        check=_check,
    )
    add = made.add_argument
    add(
        "--steps",
        type=int,
        default=5,
        metavar="N",
        action=_Once,
        help="number of training steps (default: 5)",
    )
    add(
        "--precision",
        choices=("fp64", "fp32", "bf16", "fp16"),
        default="fp64",
        action=_Once,
        metavar="TYPE",
        help="tolerance 1e-9 in fp64 (default), 1e-5 in fp32; bf16 and fp16: twice the rounding error against fp32",
    )
    add(
        "--max-world",
        type=int,
        metavar="N",
        action=_Once,
        help="check every valid layout of up to N ranks",
    )
    add(
        "--random",
        type=int,
        metavar="N",
        action=_Once,
        help="check N random valid layouts of up to --max-world ranks",
    )
    add(
        "--scale-down",
        action="store_true",
        help=f"check the nearest layout of at most {MOST_RANKS} ranks if the config's own has more; needs no tokenizer",
    )
    add("--full-size", action="store_true", help="do not shrink the config")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        action=_Once,
        help="cpu (default), or cuda with a device per rank (with --distributed-backend gloo ranks can share devices)",
    )
    add(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        action=_Once,
        help="a run that takes longer fails (default: 120)",
    )
    add("--json", metavar="FILE", action=_Once, help="write the results as JSON")
    return made
