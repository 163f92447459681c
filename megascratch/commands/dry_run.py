"""`megascratch dry-run`: runs the program of any rank of any layout in this process, on tensors without memory, and
prints what it would hold, compute and send.

megascratch dry-run --config llama3-405b --world 16384 --rank 5000
megascratch dry-run --config my.yaml --world 64 --all-stages --picture memory.svg
"""

import argparse
import json
from collections.abc import Sequence

from rich.console import Console

from megascratch.commands.input_output import require_folder_of
from megascratch.config.errors import UserError
from megascratch.config.layout import Layout
from megascratch.config.load import print_notices, read_config
from megascratch.config.printable import printable
from megascratch.config.resolve import Device
from megascratch.config.verbosity import note
from megascratch.dry_run.chart import figure
from megascratch.dry_run.report import record, tables
from megascratch.dry_run.run import ImaginedRank, run_rank
from megascratch.dry_run.settings import ImaginedRun, imagined_run
from megascratch.parallel.grid import Grid

WIDTH = 130  # of the tables if the output is not a terminal
PICTURES = (".svg", ".png", ".pdf")


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    world = _number("--world", options.world, 1)
    kind = _device_kind(options.device_kind)
    if options.picture is not None and not options.picture.endswith(PICTURES):
        raise UserError(f"--picture ({options.picture}) must end with {', '.join(PICTURES)}")
    require_folder_of("--picture", options.picture)
    loaded = read_config(options.settings)
    print_notices(loaded.origins)
    if loaded.origins.print_config:
        raise UserError("--print-config is a flag of megascratch pretrain: use it there")
    run = imagined_run(loaded, world, kind)
    for notice in run.notices:
        note(f"notice: {notice}")
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
