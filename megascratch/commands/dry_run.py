"""`megascratch dry-run`: runs the program of any rank of any layout in this process, on tensors without memory, and
prints what it would hold, compute and send.

megascratch dry-run --config llama3-405b --world 16384 --rank 5000
megascratch dry-run --config my.yaml --world 64 --all-stages --picture memory.svg
"""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from megascratch.config.errors import UserError
from megascratch.config.layout import Layout
from megascratch.config.load import print_notices, read_config
from megascratch.config.printable import printable
from megascratch.config.resolve import Device
from megascratch.config.verbosity import note
from megascratch.dry_run.settings import ImaginedRun, imagined_run
from megascratch.parallel.grid import Grid

if TYPE_CHECKING:
    from megascratch.dry_run.run import ImaginedRank

WIDTH = 130  # of the tables if the output is not a terminal


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    kind: Device = "cpu" if options.device_kind == "cpu" else "cuda"
    loaded = read_config(options.settings)
    print_notices(loaded.origins)
    if loaded.origins.print_config:
        raise UserError("--print-config is a flag of megascratch pretrain: use it there")
    run = imagined_run(loaded, options.world, kind)
    for notice in run.notices:
        note(f"notice: {notice}")
    layout = Layout.of(run.config.parallel)
    ranks = _ranks(options, layout)
    reports = _reports(run, ranks, layout, options.json)
    if options.picture is not None:
        from megascratch.dry_run.chart import figure

        title = f"memory of a training step on {layout.name}, {run.kind}"
        try:
            figure(reports, title).savefig(options.picture, dpi=150)
        except OSError as error:
            raise UserError(
                f"--picture {options.picture} cannot be written: {error.strerror}"
            ) from error
    return 0


def _ranks(options: argparse.Namespace, layout: Layout) -> list[int]:
    """The ranks to run. Raises: UserError if one is not in the layout."""
    if options.all_stages:
        grid = Grid(layout.sizes("dense"))
        return [grid.rank(pp=stage) for stage in range(layout.pp)]
    rank: int = options.rank or 0
    if rank >= layout.world:
        raise UserError(
            f"--rank ({rank}) is outside of {layout.world:,} ranks ({layout.name}): use 0 to {layout.world - 1}"
        )
    return [rank]


def _reports(
    run: ImaginedRun, ranks: Sequence[int], layout: Layout, as_json: bool
) -> "list[ImaginedRank]":
    """Runs the ranks and prints the report of each as soon as it is known; JSON is printed at the end."""
    # imports torch, so it comes after the checks
    from megascratch.dry_run.report import record, tables
    from megascratch.dry_run.run import run_rank

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
