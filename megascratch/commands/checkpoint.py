"""`megascratch checkpoint`: inspects, verifies, compares, reshards, averages and prunes checkpoints.

    megascratch checkpoint inspect runs/mine/checkpoints                       # all steps, or one step's tensors
    megascratch checkpoint verify runs/mine/checkpoints                        # reads every byte
    megascratch checkpoint diff runs/a/checkpoints/step_00000100 runs/b/checkpoints/step_00000100
    megascratch checkpoint reshard runs/mine/checkpoints --output other --files 8 --dtype bf16
    megascratch checkpoint average runs/mine/checkpoints/step_000001* --output averaged
    megascratch checkpoint prune runs/mine/checkpoints --keep-last-n-checkpoints 3 --dry-run

The folder of a run (runs/mine) stands for the checkpoints in it. If a command needs one step and a folder of steps is
given, the newest valid step is used. Folders may be in object storage, such as s3://bucket/run. A checkpoint does not
depend on a layout: any number of ranks on any layout can load it, so reshard changes files and data types, never a
layout.
"""

import argparse
import json
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from megascratch.config.printable import printable
from megascratch.storage.run_folders import require_checkpoint

if TYPE_CHECKING:
    from megascratch.storage.path import Place

WIDTH = 120  # of a table if the output is not a terminal


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    commands = {
        "inspect": inspect,
        "verify": verify,
        "diff": diff,
        "reshard": reshard,
        "average": average,
        "prune": prune,
    }
    for path in _named(options):
        require_checkpoint(path)
    return commands[options.name](options)


def _named(options: argparse.Namespace) -> list[str]:
    """The checkpoints that a command reads."""
    if options.name == "diff":
        return [options.first, options.second]
    return options.path if isinstance(options.path, list) else [options.path]


# ---- commands --------------------------------------------------------------------------------------------------


def inspect(options: argparse.Namespace) -> int:
    """Lists the steps of a folder, or the tensors, files and state of one step."""
    from megascratch.checkpoint import steps

    path = steps.checkpoints_of(options.path)
    is_step = steps.is_step(path)
    record = _step_record(path) if is_step else _folder_record(path)
    if options.json:
        print(json.dumps(record, indent=2))
    elif is_step:
        _print_step(record, options.most)
    else:
        _print_folder(record)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Reads every byte of the given steps, or of all steps of a folder; exit code 1 if there are problems."""
    from megascratch.checkpoint import open_checkpoint, steps

    found: dict[str, list[str]] = {}  # step -> its problems
    for path in options.path:
        for step in steps.candidates(path):
            problems = list(open_checkpoint.problems(step))
            found[str(step)] = problems
            if not options.json:
                for line in problems or [f"{step}: valid"]:
                    print(printable(line), flush=True)
    if options.json:
        print(
            json.dumps(
                {
                    step: dict(sound=not problems, problems=problems)
                    for step, problems in found.items()
                }
            )
        )
    return 1 if any(found.values()) else 0


def diff(options: argparse.Namespace) -> int:
    """Compares two checkpoints of any layouts tensor by tensor; exit code 1 if they differ."""
    from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
    from megascratch.checkpoint.tools.diff import config_diff, differences

    with (
        OpenCheckpoint(_one(options.first)) as first,
        OpenCheckpoint(_one(options.second)) as second,
    ):
        found = list(differences(first, second))
        settings = list(config_diff(first.manifest.state, second.manifest.state))
        paths = [str(first.path), str(second.path)]
    apart = [item for item in found if item.reason]
    equal = len(found) - len(apart)
    if options.json:
        tensors = [vars(item) | {"relative": item.relative} for item in apart]
        state = [{"place": place, "first": one, "second": other} for place, one, other in settings]
        result = {"paths": paths, "equal_tensors": equal, "tensors": tensors, "state": state}
        print(json.dumps(result, indent=2))
    else:
        _print_diff(apart, settings, options.most)
        print(f"{equal:,} of {len(found):,} tensors are bitwise equal")
    return 1 if apart else 0


def reshard(options: argparse.Namespace) -> int:
    """Rewrites a checkpoint with another number of files, another precision, or without the optimizer."""
    from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
    from megascratch.checkpoint.tools import reshard

    with OpenCheckpoint(_one(options.path)) as source:
        written = reshard.reshard(
            source,
            options.output,
            files=_number_of_files(options, source.manifest.nbytes),
            dtype=options.dtype,
            weights_only=options.weights_only,
        )
    _print_written(written, options.json)
    return 0


def average(options: argparse.Namespace) -> int:
    """Writes the mean of the weights of several steps, for evaluation and generation."""
    from contextlib import ExitStack

    from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
    from megascratch.checkpoint.tools import reshard

    with ExitStack() as stack:
        sources = [stack.enter_context(OpenCheckpoint(_one(path))) for path in options.path]
        files = _number_of_files(options, sources[-1].manifest.nbytes)
        written = reshard.average(sources, options.output, files=files)
    _print_written(written, options.json)
    return 0


def prune(options: argparse.Namespace) -> int:
    """Deletes old steps, after it has read every byte of the steps to keep; at least one valid step remains."""
    from megascratch.checkpoint import RetentionPolicy, acquire, retention
    from megascratch.checkpoint.steps import checkpoints_of

    keep = RetentionPolicy(
        options.keep_last_n_checkpoints,
        options.save_retain_interval,
        options.keep_best_n_checkpoints,
    )
    folder = checkpoints_of(options.path)
    if options.dry_run:
        steps = retention.verify_newest(retention.scan(folder), keep)
        gone = [step.path for step in retention.expired(steps, keep)]
    else:
        _one(options.path)
        lease = acquire(folder)
        try:
            gone = retention.prune(folder, keep, verify=True)
        finally:
            lease.release()
    kept = [str(step.path) for step in retention.scan(folder) if step.path not in gone]
    if options.json:
        print(
            json.dumps(
                {"deleted": [str(path) for path in gone], "kept": kept, "dry_run": options.dry_run}
            )
        )
        return 0
    verb = "would delete" if options.dry_run else "deleted"
    for path in gone:
        print(printable(f"{verb} {path}"))
    print(f"{len(gone)} {verb}, {len(kept)} kept")
    return 0


# ---- parts -----------------------------------------------------------------------------------------------------


def _one(path: str) -> Any:
    """The step that a path names. Raises: UserError if there is none."""
    from megascratch.checkpoint import resolve

    return resolve(path)


def _number_of_files(options: argparse.Namespace, nbytes: int) -> int:
    """--files, or as many as --file-mib needs."""
    if options.files:
        return int(options.files)
    return max(1, math.ceil(nbytes / (options.file_mib * 2**20)))


def _folder_record(path: "Place") -> dict[str, Any]:
    from megascratch.checkpoint import retention, steps

    steps.candidates(path)  # raises UserError for a folder without steps
    rows = []
    for step in retention.scan(path):
        row: dict[str, Any] = {"step": step.number, "path": str(step.path), "problem": step.problem}
        if not step.problem:
            manifest = steps.read_manifest(step.path)
            loss = step.valid_loss if math.isfinite(step.valid_loss) else None
            row |= {"bytes": manifest.nbytes, "files": manifest.number_of_files, "valid_loss": loss}
        rows.append(row)
    return {"path": str(path), "steps": rows}


def _step_record(path: "Place") -> dict[str, Any]:
    from megascratch.checkpoint import DamagedError, steps
    from megascratch.checkpoint.chunk_reader import ChunkReader

    step = steps.resolve(path)
    manifest = steps.read_manifest(step)
    tensors = []
    for name, whole in manifest.tensors.items():
        tensors.append(
            {
                "name": name,
                "shape": list(whole.shape),
                "dtype": str(whole.dtype).removeprefix("torch."),
                "bytes": whole.nbytes,
                "chunks": whole.chunks,
            }
        )
    files: dict[str, int] = {}
    with suppress(DamagedError):  # then "problem" says what is wrong
        files = {file.name: file.bytes for file in ChunkReader(step, manifest).files()}
    return {
        "path": str(step),
        "step": manifest.step,
        "problem": steps.problem_of(step),
        "bytes": manifest.nbytes,
        "files": files,
        "state": manifest.state,
        "tensors": tensors,
    }


def _print_folder(record: dict[str, Any]) -> None:
    table = _table("step", "size", "files", "valid loss", "")
    for row in record["steps"]:
        step = f"{row['step']:,}"
        if row["problem"]:
            table.add_row(step, "", "", "", printable(row["problem"]))
        else:
            loss = "" if row["valid_loss"] is None else f"{row['valid_loss']:.4f}"
            table.add_row(step, _size(row["bytes"]), str(row["files"]), loss, "")
    _show(table)


def _print_step(record: dict[str, Any], most: int) -> None:
    position = record["state"].get("train_state", {})
    consumed = (
        f", {position['consumed_samples']:,} samples" if "consumed_samples" in position else ""
    )
    print(
        f"{printable(record['path'])}: step {record['step']:,}{consumed}, {len(record['tensors']):,} tensors, "
        f"{_size(record['bytes'])} in {len(record['files']):,} files"
    )
    if record["problem"]:
        print(printable(record["problem"]))
    table = _table("kind", "tensors", "elements", "type", "size")
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in record["tensors"]:
        by_kind.setdefault(_kind(row), []).append(row)
    for kind, rows in sorted(by_kind.items()):
        types = ", ".join(sorted({row["dtype"] for row in rows}))
        elements = sum(math.prod(row["shape"]) for row in rows)
        size = _size(sum(row["bytes"] for row in rows))
        table.add_row(printable(kind), f"{len(rows):,}", f"{elements:,}", types, size)
    _show(table)
    table = _table("tensor", "shape", "type", "size", "chunks")
    for row in record["tensors"][:most]:
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(
            printable(row["name"]), shape, row["dtype"], _size(row["bytes"]), str(row["chunks"])
        )
    if most:
        _show(table)
    if 0 < most < len(record["tensors"]):
        print(f"and {len(record['tensors']) - most:,} more (--most)")


def _kind(row: dict[str, Any]) -> str:
    """The kind of a tensor: param, optim.exp_avg ..."""
    parts = row["name"].split(".")
    return ".".join(parts[:2]) if parts[0] == "optim" else str(parts[0])


def _print_diff(apart: list[Any], settings: list[tuple[str, Any, Any]], most: int) -> None:
    if apart:
        table = _table("tensor", "differs in", "elements", "different", "largest", "relative")
        for item in sorted(apart, key=lambda item: -item.relative)[:most]:
            cells = [printable(item.name), printable(item.reason), f"{item.elements:,}"]
            if item.different:
                cells += [f"{item.different:,}", f"{item.largest:.3g}", f"{item.relative:.3g}"]
            table.add_row(*cells)
        _show(table)
        if len(apart) > most:
            print(f"and {len(apart) - most:,} more (--most)")
    if settings:
        table = _table("state", "first", "second")
        for name, first, second in settings[:most]:
            cells = [printable(json.dumps(value))[:50] for value in (first, second)]
            table.add_row(printable(name), *cells)
        _show(table)


def _print_written(step: Any, as_json: bool) -> None:
    from megascratch.checkpoint import read_manifest

    manifest = read_manifest(step)
    files = manifest.number_of_files
    tensors = len(manifest.tensors)
    if as_json:
        print(
            json.dumps(
                {"path": str(step), "bytes": manifest.nbytes, "files": files, "tensors": tensors}
            )
        )
    else:
        print(
            f"wrote {printable(step)}: {tensors:,} tensors, {_size(manifest.nbytes)} in {files} files"
        )


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:,.1f} {unit}"
    return f"{nbytes} B"


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table()
    for column in columns:
        words = column in (
            "tensor",
            "shape",
            "type",
            "kind",
            "differs in",
            "state",
            "first",
            "second",
            "",
        )
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    return table


def _show(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
