"""What `megascratch verify` does with legal layouts: runs each, prints the table of differences, writes the JSON."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from megascratch.commands.progress import Steps
from megascratch.config.errors import UserError
from megascratch.config.printable import printable_lines
from megascratch.config.verbosity import is_quiet
from megascratch.model.own_parts import require_own_parts
from megascratch.verification.culprit import explain
from megascratch.verification.layouts import Case
from megascratch.verification.pool import Pool
from megascratch.verification.run_layout import KINDS, world_of
from megascratch.verification.tolerance import TOLERANCE
from megascratch.verification.verify import Verdict, verify_case

WIDTH = 120  # of the table if the output is not a terminal
GRACE = 5.0  # seconds until the other ranks are ended after one has failed


def verify_all(cases: Sequence[Case], options: argparse.Namespace, backend: str | None) -> int:
    """Verifies the layouts one by one and prints the table. Returns: 0 if all pass, 1 if one fails.

    Raises: UserError for a part of the user's own that cannot work, or too few devices.
    """
    small = cases[0].config
    require_own_parts(small.model, small.optim, small.data.seq_length)
    if options.device == "cuda":
        _check_devices(max(world_of(case.config.parallel) for case in cases), backend)
    console = Console(highlight=False)
    verdicts: list[Verdict] = []
    culprit: list[str] = []
    if not console.is_terminal:
        console.width = WIDTH
    pool = Pool(
        options.timeout, options.device, GRACE, backend if options.device == "cuda" else None
    )
    try:
        hidden = is_quiet() or not console.is_terminal
        in_log = None if console.is_terminal else Steps("layouts")
        with Progress(console=console, transient=True, disable=hidden) as bar:
            for number, case in enumerate(bar.track(cases, description="layouts"), 1):
                verdict = verify_case(case, options.steps, options.precision, pool)
                verdicts.append(verdict)
                if in_log is not None:
                    in_log(number, len(cases))
                if not verdict.passed:
                    bar.console.print(
                        printable_lines(f"FAIL {case.name}: {verdict.message}"),
                        markup=False,
                        soft_wrap=True,
                    )
        failed = [verdict for verdict in verdicts if not verdict.passed]
        if failed:
            culprit = explain(failed, options.precision, pool)
    finally:
        pool.close()
    console.print(_table(verdicts, options))
    good = sum(verdict.passed for verdict in verdicts)
    console.print(
        f"{good} of {len(verdicts)} layouts compute the same model as one process "
        f"({sum(v.seconds for v in verdicts):.0f} s)",
        soft_wrap=True,
    )
    for line in culprit:
        console.print(printable_lines(line), markup=False, soft_wrap=True)
    if options.json:
        _write(options.json, verdicts, options)
    return 0 if good == len(verdicts) else 1


def _check_devices(ranks: int, backend: str | None) -> None:
    there = torch.cuda.device_count()
    if there < ranks and (backend != "gloo" or there == 0):
        fewer = (
            f"use --max-world {there} or less, --distributed-backend gloo (ranks share devices), or"
        )
        raise UserError(
            f"--device cuda needs a device per rank, {ranks} for these layouts, and this machine has {there}: "
            f"{fewer if there else 'use'} --device cpu"
        )


def _table(verdicts: Sequence[Verdict], options: argparse.Namespace) -> Table:
    exact = options.precision in TOLERANCE
    measure = (
        "largest relative difference"
        if exact
        else "largest difference / rounding error of one process"
    )
    title = f"{measure}, {options.precision}, {options.steps} steps"
    number = "{:.0e}" if exact else "{:.2f}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("layout, micro-batches")
    for kind in KINDS:
        table.add_column(kind.removeprefix("grad "), justify="right", no_wrap=True)
    table.add_column("farthest tensor", no_wrap=True)
    table.add_column("tolerance", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for verdict in verdicts:
        numbers = []
        for kind in KINDS:
            numbers.append(
                number.format(verdict.worst[kind].value) if kind in verdict.worst else "-"
            )
        tensors = [
            verdict.worst[kind] for kind in ("gradients", "weights") if kind in verdict.worst
        ]
        farthest = max(tensors, key=lambda found: found.value).tensor if tensors else "-"
        result = Text("pass", "green") if verdict.passed else Text("FAIL", "bold red")
        table.add_row(
            Text(verdict.case.name), *numbers, Text(farthest), f"{verdict.limit:g}", result
        )
    return table


def _write(file: str, verdicts: Sequence[Verdict], options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    for verdict in verdicts:
        differences = {}
        for kind, found in verdict.worst.items():
            differences[kind] = {
                "value": _number(found.value),
                "tensor": found.tensor,
                "step": found.step,
            }
        rows.append(
            {
                "layout": verdict.case.name,
                "world_size": world_of(verdict.case.config.parallel),
                "passed": verdict.passed,
                "message": verdict.message,
                "seconds": round(verdict.seconds, 3),
                "tolerance": verdict.limit,
                "differences": differences,
                "config": asdict(verdict.case.config),
            }
        )
    report = {
        "precision": options.precision,
        "steps": options.steps,
        "device": options.device,
        "passed": all(verdict.passed for verdict in verdicts),
        "layouts": rows,
    }
    try:
        with open(file, "w", encoding="utf-8") as out:
            out.write(json.dumps(report, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {file} cannot be written: {error.strerror}") from error


def _number(value: float) -> float | str:
    """The number, or the text 'infinite', since JSON has no infinity."""
    return value if value < float("inf") else "infinite"
