"""Draws the memory of a rank over the actions of a step, by part, in the colours of pipeline schedules."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megascratch.config.printable import size
from megascratch.dry_run.memory import PARTS, Moment
from megascratch.dry_run.run import ImaginedRank
from megascratch.dry_run.steps import operation_of
from megascratch.pipeline.chart import COLORS, MEANINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 1 << 30
PART_COLORS = {
    "weights": "#3b5b92",
    "gradients": "#7c6bb0",
    "optimizer": "#9a9a9a",
    "activations": "#4c9be8",
    "messages": "#d9705f",
    "temporaries": "#f2b84b",
    "other": "#cccccc",
}


def figure(reports: Sequence[ImaginedRank], title: str) -> "Figure":
    """A chart with a row for each rank: the memory at the peak of each action, with the operations below it."""
    from matplotlib.figure import Figure  # slow to import, and most runs draw nothing
    from matplotlib.patches import Patch

    chart = Figure(figsize=(14, 3.2 * len(reports) + 1.2), layout="constrained")
    chart.suptitle(title)
    rows = chart.subplots(len(reports), squeeze=False)[:, 0]
    operations = set()
    for axes, report in zip(rows, reports, strict=True):
        moments = [moment for moment in report.memory.timeline if moment.peak]
        operations |= {operation_of(moment.action) for moment in moments}
        _areas(axes, moments)
        axes.set(
            title=f"rank {report.rank}: {size(report.memory.peak)} in {report.memory.peak_action}",
            ylabel="GiB",
            xlim=(0, len(moments)),
            xticks=[],
        )
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set(xlabel="actions in the order of the schedule")
    handles = [Patch(color=PART_COLORS[part], label=part) for part in PARTS]
    for operation, meaning in MEANINGS.items():
        if operation in operations:
            handles.append(Patch(color=COLORS[operation], label=f"{operation}: {meaning}"))
    chart.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return chart


def _areas(axes: "Axes", moments: Sequence[Moment]) -> None:
    """One step-shaped area for each part, and a strip with the colour of each action."""
    edges = range(len(moments) + 1)
    bottom = [0.0] * len(moments)
    for part in PARTS:
        top = []
        for below, moment in zip(bottom, moments, strict=True):
            top.append(below + moment.at_peak[part] / GIB)
        axes.stairs(top, edges, baseline=bottom, fill=True, color=PART_COLORS[part])
        bottom = top
    strip = -0.04 * max(bottom, default=1.0)
    for number, moment in enumerate(moments):
        color = COLORS.get(operation_of(moment.action))
        if color is not None:
            axes.bar(number, strip, width=1.0, align="edge", color=color, edgecolor="white", lw=0.3)
