"""Plots the statistics of a corpus: lengths of its documents, and how often each id occurs."""

import numpy as np
from matplotlib.figure import Figure

from megascratch.data.inspect.statistics import Statistics, binned


def histograms(numbers: Statistics, title: str) -> Figure:
    """Plots documents by length, in bins that grow by a factor, and ids by rank on logarithmic axes (Zipf's law)."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    lengths, ids = figure.subplots(1, 2)
    rows = binned(numbers.lengths)
    lengths.bar(
        [max(low, 0.5) for low, _, _ in rows],
        [count for _, _, count in rows],
        width=[max(high + 1 - max(low, 0.5), 0.5) for low, high, _ in rows],
        align="edge",
        color="#4c9be8",
        edgecolor="white",
        linewidth=0.5,
    )
    lengths.set(xscale="log", xlabel="tokens of a document", ylabel="documents")
    times = -np.sort(-numbers.ids[numbers.ids > 0])
    ids.plot(np.arange(1, len(times) + 1), times, color="#57b894")
    ids.set(xscale="log", yscale="log" if len(times) else "linear", xlabel="rank of the id", ylabel="times")
    for axes in (lengths, ids):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure
