"""`megascratch dry-run`: runs the program of any rank of any layout in this process, on tensors without memory, and
prints what it would hold, compute and send.

megascratch dry-run --config llama3-405b --world 16384 --rank 5000
megascratch dry-run --config my.yaml --world 64 --all-stages --picture memory.svg
"""

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from megascratch.commands.input_output import require_folder_of
from megascratch.config.errors import UserError
from megascratch.config.layout import Layout
from megascratch.config.load import print_notices, read_config
from megascratch.config.printable import printable
from megascratch.config.resolve import Device
from megascratch.dry_run.chart import figure
from megascratch.dry_run.report import record, tables
from megascratch.dry_run.run import ImaginedRank, run_rank
from megascratch.dry_run.settings import ImaginedRun, imagined_run
from megascratch.parallel.grid import Grid

SUMMARY = "runs the program of a rank without the other ranks, and counts what it holds, computes and sends"
EPILOG = (
    "Accepts every setting of `megascratch pretrain` as a flag, and --config FILE. Data, a length and the files of a "
    "tokenizer are not needed; --vocab-size is, or a tokenizer. Memory is that of tensors, at the peak of one step; "
    "CUDA, NCCL and fragmentation need some more."
)
WIDTH = 130  # of the tables if the output is not a terminal
PICTURES = (".svg", ".png", ".pdf")


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return 0
    options, words = parser.parse_known_args(argv)
    world = _number("--world", options.world, 1)
    kind = _device_kind(options.device_kind)
    if options.picture is not None and not options.picture.endswith(PICTURES):
        raise UserError(f"--picture ({options.picture}) must end with {', '.join(PICTURES)}")
    require_folder_of("--picture", options.picture)
    loaded = read_config(words, prog="megascratch dry-run")
    print_notices(loaded.origins)
    if loaded.origins.print_config:
        raise UserError("--print-config is a flag of megascratch pretrain: use it there")
    run = imagined_run(loaded, world, kind)
    for notice in run.notices:
        print(f"notice: {notice}", file=sys.stderr)
    layout = Layout.of(run.config.parallel)
    ranks = _ranks(options, layout)
    reports = _reports(run, ranks, layout, options.json)
    if options.picture is not None:
        title = f"memory of a training step on {layout.name}, {run.kind}"
        try:
            figure(reports, title).savefig(options.picture, dpi=150)
        except OSError as error:
            raise UserError(
                f"--picture {options.picture} cannot be written: {error.strerror}"
            ) from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megascratch dry-run",
        description=SUMMARY,
        epilog=EPILOG,
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--world", metavar="N", help="the number of ranks of the run")
    add("--rank", metavar="R", help="the rank to run (default: 0)")
    add(
        "--all-stages",
        action="store_true",
        help="run one rank of each pipeline stage, the first of those that share it",
    )
    add(
        "--device-kind",
        default="cuda",
        metavar="KIND",
        help="cpu, or cuda (default): the device of each rank, whose kernels and buffers are used",
    )
    add("--json", action="store_true", help="print JSON, with every action; sizes are bytes")
    add(
        "--picture",
        metavar="FILE",
        help="draw the memory over the actions of the step (.svg, .png or .pdf)",
    )
    return parser


def _number(flag: str, text: str | None, least: int) -> int:
    """The number that is given with a flag. Raises: UserError."""
    if text is None:
        raise UserError(f"{flag} is missing: give the number of ranks, for example {flag} 64")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{flag} ({text}) must be a number, for example {flag} 64")
    if int(text) < least:
        raise UserError(f"{flag} ({text}) must be at least {least}: use {least} or more")
    return int(text)


def _device_kind(text: str) -> Device:
    for kind in ("cpu", "cuda"):
        if text == kind:
            return kind
    raise UserError(
        f"--device-kind ({text}) must be cpu or cuda: a dry run knows the kernels of these devices"
    )


def _ranks(options: argparse.Namespace, layout: Layout) -> list[int]:
    """The ranks to run. Raises: UserError if one is not in the layout, or if both ways to choose are used."""
    if options.all_stages:
        if options.rank is not None:
            raise UserError(
                f"--all-stages chooses the ranks itself: remove it, or --rank ({options.rank})"
            )
        grid = Grid(layout.sizes("dense"))
        return [grid.rank(pp=stage) for stage in range(layout.pp)]
    rank = 0 if options.rank is None else _number("--rank", options.rank, 0)
    if rank >= layout.world:
        raise UserError(
            f"--rank ({rank}) is outside of {layout.world:,} ranks ({layout.name}): use 0 to {layout.world - 1}"
        )
    return [rank]


def _reports(
    run: ImaginedRun, ranks: Sequence[int], layout: Layout, as_json: bool
) -> list[ImaginedRank]:
    """Runs the ranks and prints the report of each as soon as it is known; JSON is printed at the end."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    if not as_json:
        console.print(f"{layout.world:,} ranks: {layout.name}", markup=False)
    reports = []
    for rank in ranks:
        report = run_rank(run, rank)
        reports.append(report)
        if not as_json:
            for part in tables(report, run.kind):
                console.print(printable(part) if isinstance(part, str) else part)
    if as_json:
        found = {
            "world": layout.world,
            "layout": layout.sizes("dense"),
            "device_kind": run.kind,
            "ranks": [record(report) for report in reports],
        }
        print(json.dumps(found, indent=2))
    return reports
