"""A timeline in, a picture out: lines of coloured text for the terminal, a chart for a file."""

from matplotlib.figure import Figure
from rich.text import Text

from megascratch.pipeline.play import Timeline
from megascratch.pipeline.schedule import COMPUTE

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


def figure(timeline: Timeline, title: str) -> Figure:
    """Bars over time, one row per rank; the second chunk of a rank is paler."""
    ranks = len(timeline.spans)
    chart = Figure(figsize=(14, 0.6 * ranks + 1.4), layout="constrained")
    axes = chart.subplots()
    for rank, spans in enumerate(timeline.spans):
        for action, start, end in spans:
            if action.op in COMPUTE and end > start:
                axes.barh(rank, end - start, left=start, height=0.9, color=COLORS[action.op],
                          alpha=max(0.45, 1 - 0.3 * action.chunk), edgecolor="white", linewidth=0.5)  # fmt: skip
                axes.text((start + end) / 2, rank, str(action.microbatch), ha="center", va="center", fontsize=7)
    axes.set(title=title, xlabel="time", yticks=range(ranks), yticklabels=[f"rank {rank}" for rank in range(ranks)])
    axes.invert_yaxis()
    axes.set_xlim(0, timeline.total)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return chart
