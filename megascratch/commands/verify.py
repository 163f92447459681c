"""`megascratch verify`: checks with the user's own config that a layout computes the same model as one process.

Prints a table of differences. Exit code 0 if every layout passes, 1 if one fails.
"""

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
from megascratch.config.fields import flat
from megascratch.config.load import load_config, print_notices
from megascratch.config.printable import printable_lines
from megascratch.config.resolve import Values
from megascratch.config.verbosity import is_quiet
from megascratch.model.own_parts import require_own_parts
from megascratch.training.start.inputs import open_tokenizer, own_schedule
from megascratch.verification.culprit import explain
from megascratch.verification.layouts import Case, every_layout, own_layout, random_layouts
from megascratch.verification.pool import Pool
from megascratch.verification.run_layout import EOD, KINDS, world_of
from megascratch.verification.shrink import for_proof
from megascratch.verification.tolerance import TOLERANCE
from megascratch.verification.verify import Verdict, verify_case

WIDTH = 120  # of the table if the output is not a terminal
GRACE = 5.0  # seconds until the other ranks are ended after one has failed


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    config, origins = load_config(options.settings)
    print_notices(origins)
    if origins.print_config:
        raise UserError("--print-config is a flag of megascratch pretrain: use it there")
    settings = flat(config)
    if settings["vocab_size"] is None:
        tokenizer = open_tokenizer(config.data, None)
        settings["vocab_size"] = tokenizer.vocab_size if tokenizer else None
    proof = for_proof(settings, options.steps, options.precision)
    cases = _cases({**proof, "device": options.device}, options, origins.places)
    backend = config.parallel.distributed_backend
    _check_vocabulary(cases)
    for case in cases:
        own_schedule(flat(case.config))
    small = cases[0].config
    require_own_parts(small.model, config.optim, small.data.seq_length)
    if options.device == "cuda":
        _check_devices(max(world_of(case.config.parallel) for case in cases), backend)
    return _verify_all(cases, options, backend)


def _cases(settings: Values, options: argparse.Namespace, places: dict[str, str]) -> list[Case]:
    fixed = {name for name, place in places.items() if place == "flag"}
    if options.max_world is None:
        return [own_layout(settings, options.full_size)]
    if options.random is None:
        return every_layout(settings, options.max_world, fixed, options.full_size)
    return random_layouts(
        settings,
        options.max_world,
        options.random,
        settings["seed"],
        fixed,
        places,
        options.full_size,
    )


def _check_vocabulary(cases: Sequence[Case]) -> None:
    size = min(case.config.model.vocab_size for case in cases)
    if size <= EOD:
        raise UserError(
            f"vocab-size ({size}) must be above {EOD} for synthetic text: use {EOD + 1} or more"
        )


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


def _verify_all(cases: Sequence[Case], options: argparse.Namespace, backend: str | None) -> int:
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
