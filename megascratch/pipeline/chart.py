"""A timeline in, a picture out: lines of coloured text for the terminal, a chart for a file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from megascratch.pipeline.schedule import COMPUTE
from megascratch.pipeline.simulate import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"F": "#4c9be8", "B": "#57b894", "I": "#57b894", "W": "#f2b84b"}  # F forward, B and I backward, W weights


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
    """Bars over time, one row per rank; the second chunk of a rank is paler."""
    return stacked({title: timeline})


def stacked(timelines: Mapping[str, Timeline]) -> "Figure":
    """Timelines of as many ranks one under the other, by title, on one axis of time."""
    from matplotlib.figure import Figure  # slow to import, and most runs draw nothing

    ranks = max(len(timeline.spans) for timeline in timelines.values())
    chart = Figure(figsize=(14, len(timelines) * (0.6 * ranks + 1.0) + 0.4), layout="constrained")
    rows = chart.subplots(len(timelines), sharex=True, squeeze=False)[:, 0]
    for axes, (title, timeline) in zip(rows, timelines.items(), strict=True):
        _bars(axes, timeline)
        axes.set(title=title, yticks=range(ranks), yticklabels=[f"rank {rank}" for rank in range(ranks)])
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
    rows[-1].set(xlabel="time", xlim=(0, max(timeline.total for timeline in timelines.values())))
    return chart


def _bars(axes: "Axes", timeline: Timeline) -> None:
    for rank, spans in enumerate(timeline.spans):
        for action, start, end in spans:
            if action.op in COMPUTE and end > start:
                axes.barh(rank, end - start, left=start, height=0.9, color=COLORS[action.op],
                          alpha=max(0.45, 1 - 0.3 * action.chunk), edgecolor="white", linewidth=0.5)  # fmt: skip
                axes.text((start + end) / 2, rank, str(action.microbatch), ha="center", va="center", fontsize=7)
