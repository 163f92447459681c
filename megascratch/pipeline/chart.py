"""Draws the timeline of a pipeline schedule: as coloured text for the terminal, or as a chart for a file."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from rich.text import Text

from megascratch.pipeline.schedule import COMPUTE
from megascratch.pipeline.simulate import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"F": "#4c9be8", "B": "#57b894", "I": "#57b894", "W": "#f2b84b"}
MEANINGS = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
"""The text of each operation in the legend."""


def terminal(timeline: Timeline, unit: float) -> list[Text]:
    """One line per rank, a column per `unit` of time."""
    lines = []
    for rank, line in enumerate(timeline.draw(unit)):
        text = Text(f"rank {rank:<3} {line}", no_wrap=True)
        for op, color in COLORS.items():
            text.highlight_regex(rf"\b{op}\d+(\.\d+)?( +-)*", f"black on {color}")
        lines.append(text)
    return lines


def figure(timeline: Timeline, title: str) -> "Figure":
    """A chart with bars over time, one row per rank; later chunks of a rank are paler."""
    return stacked({title: timeline})


def stacked(timelines: Mapping[str, Timeline]) -> "Figure":
    """A chart of several timelines, by title, below each other on one time axis, with a legend."""
    from matplotlib.figure import Figure  # slow to import, and most runs draw nothing
    from matplotlib.patches import Patch

    ranks = max(len(timeline.spans) for timeline in timelines.values())
    height = len(timelines) * (0.6 * ranks + 1.0) + 0.8
    chart = Figure(figsize=(14, height), layout="constrained")
    rows = chart.subplots(len(timelines), sharex=True, squeeze=False)[:, 0]
    for axes, (title, timeline) in zip(rows, timelines.items(), strict=True):
        _bars(axes, timeline)
        names = [f"rank {rank}" for rank in range(ranks)]
        axes.set(title=title, yticks=range(ranks), yticklabels=names)
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
    total = max(timeline.total for timeline in timelines.values())
    rows[-1].set(xlabel="time", xlim=(0, total))
    handles = []
    for label, color, alpha in _legend(timelines.values()):
        handles.append(Patch(color=color, alpha=alpha, label=label))
    chart.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return chart


def _legend(timelines: Iterable[Timeline]) -> list[tuple[str, str, float]]:
    """(text, color, opacity) of each kind of bar that occurs, and of the empty space."""
    spans = [span for timeline in timelines for span in chain.from_iterable(timeline.spans)]
    ops = {span.action.op for span in spans}
    entries = []
    for op, meaning in MEANINGS.items():
        if op in ops:
            entries.append((f"{op}: {meaning}", COLORS[op], 1.0))
    if any(span.action.chunk > 0 for span in spans):
        entries.append(("paler: later model chunks of the rank", COLORS["F"], _opacity(1)))
    entries.append(("number: micro-batch", "white", 0.0))
    entries.append(("empty: idle (the bubble)", "white", 0.0))
    return entries


def _opacity(chunk: int) -> float:
    return max(0.45, 1 - 0.3 * chunk)


def _bars(axes: "Axes", timeline: Timeline) -> None:
    for rank, spans in enumerate(timeline.spans):
        for action, start, end in spans:
            if action.op not in COMPUTE or end <= start:
                continue
            axes.barh(
                rank,
                end - start,
                left=start,
                height=0.9,
                color=COLORS[action.op],
                alpha=_opacity(action.chunk),
                edgecolor="white",
                linewidth=0.5,
            )
            middle = (start + end) / 2
            axes.text(middle, rank, str(action.microbatch), ha="center", va="center", fontsize=7)
