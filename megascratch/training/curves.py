"""Draws the curves of a run into a PNG file: losses, learning rate and gradient norm over steps.

`main` is the child process of `loss_picture`: for each line {"rows": FILE, "picture": FILE, "title": ...}
that it reads it draws a picture, and answers with a line that says what went wrong; an empty one if nothing did.
"""

import json
import math
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megascratch.config.printable import printable
from megascratch.runtime.atomic_file import atomic_file
from megascratch.training.report_files import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]
"""(step, value) of each point."""

COLORS = {"train": "#4c9be8", "valid": "#d9705f", "test": "#57b894"}
OTHER_COLOR = "#7c6bb0"
LARGEST = 1e300  # matplotlib cannot place the ticks of larger numbers
SMOOTHED_FROM = 20  # points of a curve
PANELS = {"learning_rate": "learning rate", "grad_norm": "gradient norm"}


def draw(rows: Iterable[dict[str, Any]], file: Path, title: str = "") -> None:
    """Draws the rows of a report. Raises: OSError if the file cannot be written; the old one stays."""
    from matplotlib.figure import (
        Figure,  # slow to import, and this module is also imported for its numbers
    )

    rows = list(rows)
    losses = _losses(rows)
    panels = {name: curve for name in PANELS if (curve := _curve(rows, name))}
    ratios = [3.0, *[1.0] * len(panels)]
    figure = Figure(figsize=(9, 4 + 1.4 * len(panels)), layout="constrained")
    axes, *below = figure.subplots(
        len(ratios), sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )[:, 0]
    if title:
        figure.suptitle(_plain(title), fontsize=10)
    for name, curve in losses.items():
        _loss(axes, name, curve)
    axes.set(ylabel="loss (nats per token)")
    if losses:
        axes.legend(frameon=False)
    for (name, curve), panel in zip(panels.items(), below, strict=True):
        steps, values = zip(*curve, strict=True)
        panel.plot(steps, values, color="#555555", linewidth=1.0)
        panel.set(ylabel=PANELS[name])
        if name == "grad_norm" and 0 < 20 * min(values) < max(values):
            panel.set(yscale="log")
    for panel in (axes, *below):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    (below[-1] if below else axes).set(xlabel="step")
    with atomic_file(file) as picture:
        figure.savefig(picture, dpi=120, format="png")


def smoothed(curve: Curve) -> tuple[Curve, int]:
    """The mean of each point with as many before it as after it, and how many points that are: at most a tenth of the
    curve. Near both ends there are fewer, so that the average does not lag behind a curve that falls."""
    reach = max(2, len(curve) // 20)
    sums = [0.0]
    for _, value in curve:
        sums.append(sums[-1] + value)
    averages = []
    for place, (step, _) in enumerate(curve):
        around = min(reach, place, len(curve) - 1 - place)
        first = place - around
        stop = place + around + 1
        averages.append((step, (sums[stop] - sums[first]) / (stop - first)))
    return averages, 2 * reach + 1


def _loss(axes: "Axes", name: str, curve: Curve) -> None:
    steps, losses = zip(*curve, strict=True)
    label = _plain(name)
    color = COLORS.get(name, OTHER_COLOR)
    if name != "train":
        axes.plot(steps, losses, label=label, color=color, marker="o", markersize=4, linewidth=1.2)
    elif len(curve) < SMOOTHED_FROM:
        axes.plot(steps, losses, label=label, color=color, linewidth=1.2)
    else:
        averages, points = smoothed(curve)
        axes.plot(steps, losses, label=label, color=color, alpha=0.35, linewidth=0.8)
        _, values = zip(*averages, strict=True)
        axes.plot(steps, values, label=f"{label}, mean of {points} log lines", color=color)


def _losses(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    """The curve of each split that has one; training first."""
    curves: dict[str, Curve] = {}
    for split in dict.fromkeys(["train", *[str(row.get("split", "train")) for row in rows]]):
        of_split = [row for row in rows if str(row.get("split", "train")) == split]
        curve = _curve(of_split, "loss")
        if curve:
            curves[split] = curve
    return curves


def _curve(rows: list[dict[str, Any]], name: str) -> Curve:
    """The points of a column whose values are numbers that can be drawn."""
    curve = []
    for row in rows:
        value = row.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and abs(value) < LARGEST:
            curve.append((row["step"], value))
    return curve


def _plain(text: str) -> str:
    """A text without control characters, and without formulas, which matplotlib reads."""
    return printable(text).replace("$", r"\$")


def answer(line: str) -> str:
    """Draws what a line asks for. Returns: what went wrong; '' if nothing did."""
    asked = json.loads(line)
    try:
        draw(read_rows(Path(asked["rows"])).rows, Path(asked["picture"]), asked["title"])
    except Exception as error:
        if isinstance(error, OSError):
            return printable(f"{error.filename or asked['picture']}: {error.strerror or error}")
        return printable(f"{type(error).__name__}: {error}")
    return ""


def main() -> None:
    """Answers until the pipe from the first rank is closed, which also happens when that rank is killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a request to stop the run: the picture comes last
    import matplotlib.figure  # noqa: F401 - now, while the run trains its first steps

    for line in sys.stdin:
        print(answer(line), flush=True)
