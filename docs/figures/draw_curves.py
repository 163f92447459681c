"""Draws loss-curve.svg from the metrics of the tutorial's run: `python docs/figures/draw_curves.py METRICS.jsonl`."""

import json
import sys
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

rcParams["svg.fonttype"] = "none"


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if "learning_rate" in row]
    valid = [row for row in rows if row.get("split") == "valid"]
    chart = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = chart.subplots(1, 2)
    steps = [row["step"] for row in train]
    left.plot(steps, [row["loss"] for row in train], label="training, mean of the interval")
    left.plot(
        [row["step"] for row in valid], [row["loss"] for row in valid], "o", label="validation"
    )
    left.set(title="loss", xlabel="step", ylabel="nats per token")
    right.plot(
        steps, [row["learning_rate"] for row in train], color="tab:green", label="learning rate"
    )
    right.set(title="warm-up, then cosine", xlabel="step", ylabel="learning rate")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    chart.savefig(Path(__file__).with_name("loss-curve.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
