"""Writes the report of a dry run: tables for the terminal, or a record for JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from megascratch.config.printable import size
from megascratch.dry_run.memory import PARTS
from megascratch.dry_run.run import ImaginedRank
from megascratch.pipeline.chart import MEANINGS


def record(report: ImaginedRank) -> dict[str, Any]:
    """What --json prints of one rank; all sizes are bytes."""
    memory = report.memory
    timeline = []
    for moment in memory.timeline:
        timeline.append(
            {
                "action": moment.action,
                "peak": moment.peak,
                "at_peak": dict(moment.at_peak),
                "at_end": dict(moment.at_end),
            }
        )
    return {
        "rank": report.rank,
        "place": report.place,
        "layers": report.layers,
        "parameters": report.parameters._asdict(),
        "memory": {
            "peak": memory.peak,
            "peak_action": memory.peak_action,
            "at_peak": dict(memory.at_peak),
            "activations": dict(memory.activations),
            "host": memory.host,
            "timeline": timeline,
        },
        "traffic": [asdict(row) for row in report.traffic],
        "flops": report.flops,
        "kernels": {name: asdict(use) for name, use in report.kernels.items()},
        "model_flops": report.model_flops,
        "microbatches": report.microbatches,
        "microbatches_run": report.microbatches_run,
        "seconds": round(report.seconds, 3),
    }


def tables(report: ImaginedRank, kind: str) -> Iterator[RenderableType]:
    """The report of one rank for the terminal.

    Args:
        kind: of the device.
    """
    place = " ".join(f"{axis} {at}" for axis, at in report.place.items())
    layers = "; ".join(_layers(chunk) for chunk in report.layers)
    held, counted, model = report.parameters
    flops = sum(report.flops.values())
    yield f"rank {report.rank} ({place}), layers {layers}, {report.microbatches} micro-batches a step"
    yield (
        f"  parameters    {held:,} on this rank ({counted:,} of them as the first copy), {model:,} in the model"
    )
    yield (
        f"  operations    {flops:.3e} FLOPs on this rank ({_shares(report.flops, flops)}), "
        f"{report.model_flops:.3e} for the model without recomputation"
    )
    kernels = [f"{name} x {use.calls:,}" for name, use in report.kernels.items()]
    yield f"  kernels       {', '.join(kernels)}"
    yield _memory(report, kind)
    yield _traffic(report)


def _layers(chunk: list[int]) -> str:
    """'8 to 15', '3' or 'none'."""
    if not chunk:
        return "none"
    return str(chunk[0]) if len(chunk) == 1 else f"{chunk[0]} to {chunk[-1]}"


def _shares(parts: Mapping[str, int], total: int) -> str:
    shares = []
    for operation, amount in parts.items():
        shares.append(f"{MEANINGS.get(operation, operation)} {amount / max(total, 1):.0%}")
    return ", ".join(shares)


def _memory(report: ImaginedRank, kind: str) -> Table:
    """The parts of the memory at its peak, and before and after it."""
    memory = report.memory
    begin = memory.timeline[0].at_end
    table = Table(
        title=f"memory of the {kind} device: {size(memory.peak)} at most, in {memory.peak_action}",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
    )
    table.add_column("part")
    table.add_column("before the step", justify="right")
    table.add_column("at the peak", justify="right")
    for part in PARTS:
        table.add_row(part, size(begin[part]), size(memory.at_peak[part]))
        if part == "activations":
            for layer, nbytes in sorted(memory.activations.items(), key=lambda item: -item[1]):
                table.add_row(f"  {layer or 'between layers'}", "", size(nbytes))
    if memory.host:
        table.add_row("in host memory", size(memory.host), size(memory.host))
    return table


def _traffic(report: ImaginedRank) -> Table:
    """A row for each kind of communication."""
    table = Table(
        title="communication in a step",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
    )
    table.add_column("operation")
    table.add_column("axis")
    for name in ("ranks", "count", "bytes", "largest", "sent by rings"):
        table.add_column(name, justify="right")
    table.add_column("in")
    for row in report.traffic:
        actions = ", ".join(f"{operation} {count}" for operation, count in row.actions.items())
        table.add_row(
            f"{row.operation} {row.dtype}",
            row.axis,
            f"{row.ranks:,}",
            f"{row.count:,}",
            size(row.nbytes),
            size(row.largest),
            size(row.sent),
            actions,
        )
    return table
