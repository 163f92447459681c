"""The flags of `megascratch dry-run`."""

import argparse

from megascratch.commands.parsers.base import Parser, any_setting
from megascratch.commands.parsers.shared import add_json, at_least, require_folder_of
from megascratch.config.errors import UserError

PICTURES = (".svg", ".png", ".pdf")

NOTE = (
    "Data, a length and the files of a tokenizer are not needed; --vocab-size is, or a tokenizer. Memory is that of "
    "tensors, at the peak of one step; CUDA, NCCL and fragmentation need some more."
)
EXAMPLES = (
    "megascratch dry-run --config my.yaml --world 64 --all-stages \\\n    --picture memory.svg",
    "megascratch dry-run --config llama3-405b \\\n    --world 16384 --rank 5000",
)


def _check(options: argparse.Namespace) -> None:
    if options.picture is not None and not options.picture.endswith(PICTURES):
        raise UserError(f"--picture ({options.picture}) must end with {', '.join(PICTURES)}")
    require_folder_of("--picture", options.picture)
    if options.all_stages and options.rank is not None:
        raise UserError(
            f"--all-stages chooses the ranks itself: remove it, or --rank ({options.rank})"
        )


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch dry-run",
        "Runs the program of a rank without the other ranks, on tensors without memory, and prints what it would "
        "hold, compute and send.",
        EXAMPLES,
        NOTE,
        settings_help=any_setting,
        check=_check,
    )
    add = made.add_argument
    add(
        "--world",
        type=at_least(1),
        required=True,
        metavar="N",
        help="the number of ranks of the run",
    )
    add("--rank", type=at_least(0), metavar="R", help="the rank to run (default: 0)")
    add(
        "--all-stages",
        action="store_true",
        help="run one rank of each pipeline stage, the first of those that share it",
    )
    add(
        "--device-kind",
        default="cuda",
        choices=("cpu", "cuda"),
        help="the device of each rank, whose kernels and buffers are used (default: cuda)",
    )
    add_json(made)
    add(
        "--picture",
        metavar="FILE",
        help="draw the memory over the actions of the step (.svg, .png or .pdf)",
    )
    return made
