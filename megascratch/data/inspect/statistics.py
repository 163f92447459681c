"""Computes and plots corpus statistics for `megascratch data inspect`: document lengths, id frequencies, EOD.

Everything is counted by value (how many documents have n tokens, how often id t occurs), so one pass in blocks gives
exact quantiles in memory that does not grow with the corpus.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from megascratch.data.tokens.idx_format import BLOCK
from megascratch.data.tokens.token_files import TokenReader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# larger ids are counted together: no vocabulary has them, but a damaged file may
LARGEST_ID = 1 << 24


@dataclass(frozen=True)
class Statistics:
    """The counts of one corpus."""

    documents: int
    sequences: int
    tokens: int
    lengths: dict[int, int]
    """Tokens of a document -> number of documents, by increasing length."""
    ids: np.ndarray
    """int64 [largest id + 1]: how often each id occurs."""
    ids_outside: int
    """Ids that are negative or above 2^24."""
    eod: int | None
    documents_with_eod: int
    """Documents whose last sequence ends with `eod`."""

    @property
    def quantiles(self) -> dict[float, int]:
        """Quantile -> tokens of a document (nearest rank)."""
        if not self.documents:
            return dict.fromkeys(QUANTILES, 0)
        lengths = list(self.lengths)
        # [lengths]: documents of at most this length
        documents_up_to = np.cumsum(list(self.lengths.values()))
        quantiles = {}
        for share in QUANTILES:
            rank = max(1, int(np.ceil(share * self.documents)))
            at = int(np.searchsorted(documents_up_to, rank))
            quantiles[share] = lengths[at]
        return quantiles

    @property
    def ids_used(self) -> int:
        """Number of different ids that occur."""
        return int(np.count_nonzero(self.ids))

    def most_frequent(self, most: int) -> list[tuple[int, int]]:
        """(id, times), the most frequent first, ties by id."""
        order = np.argsort(-self.ids, kind="stable")
        frequent = []
        for token in order[:most].tolist():
            times = int(self.ids[token])
            if times:
                frequent.append((token, times))
        return frequent


def statistics(reader: TokenReader, eod: int | None = None) -> Statistics:
    """Counts all documents and ids of a corpus."""
    lengths: Counter[int] = Counter()
    for block in document_lengths(reader):
        values, counts = np.unique(block, return_counts=True)
        for length, count in zip(values.tolist(), counts.tolist(), strict=True):
            lengths[length] += count
    ids, outside = _count_ids(reader)
    return Statistics(
        documents=len(reader.documents) - 1,
        sequences=len(reader),
        tokens=reader.tokens,
        lengths=dict(sorted(lengths.items())),
        ids=ids,
        ids_outside=outside,
        eod=eod,
        documents_with_eod=0 if eod is None else _documents_with_eod(reader, eod),
    )


def document_lengths(reader: TokenReader) -> Iterator[np.ndarray]:
    """Tokens of each document, int64, in blocks."""
    for start in range(0, len(reader.documents) - 1, BLOCK):
        # first sequence of each document, and the end
        borders = reader.documents[start : start + BLOCK + 1]
        first = int(borders[0])
        stop = int(borders[-1])
        ends = np.cumsum(reader.lengths[first:stop], dtype=np.int64)
        tokens_before = np.concatenate([[0], ends])  # [sequences + 1]
        yield np.diff(tokens_before[borders - first])


def _count_ids(reader: TokenReader) -> tuple[np.ndarray, int]:
    """How often each id occurs, int64 [largest id + 1], and how many ids are negative or above LARGEST_ID."""
    may_be_outside = reader.dtype.itemsize > 2 or reader.dtype.kind == "i"
    total = np.zeros(0, dtype=np.int64)
    outside = 0
    for _, ids in reader.blocks():
        inside = ids
        if may_be_outside:
            inside = ids[(ids >= 0) & (ids < LARGEST_ID)]
            outside += len(ids) - len(inside)
        counts = np.bincount(inside)
        if len(counts) > len(total):
            counts[: len(total)] += total
            total = counts
        else:
            total[: len(counts)] += counts
    return total, outside


def _documents_with_eod(reader: TokenReader, eod: int) -> int:
    """Documents whose last sequence ends with `eod`."""
    count = 0
    size = reader.dtype.itemsize
    for at in range(0, len(reader.documents) - 1, BLOCK):
        borders = reader.documents[at : at + BLOCK + 1]
        has_sequences = np.diff(borders) > 0
        sequences = borders[1:][has_sequences] - 1  # the last one of each document
        sequences = sequences[reader.lengths[sequences] > 0]
        lengths = reader.lengths[sequences].astype(np.int64)
        # byte offsets in .bin, rising
        last_tokens = reader.pointers[sequences] + (lengths - 1) * size
        for start, ids in reader.blocks(int(borders[0]), int(borders[-1])):
            low, high = np.searchsorted(last_tokens, [start, start + ids.nbytes])
            places = (last_tokens[low:high] - start) // size
            count += int(np.count_nonzero(ids[places] == eod))
    return count


def binned(lengths: Mapping[int, int], bins: int = 24) -> list[tuple[int, int, int]]:
    """(shortest, longest, documents) for bins of lengths that grow by a constant factor; empty documents separately."""
    values = [length for length in lengths if length > 0]
    empty = lengths.get(0, 0)
    if not values:
        return [(0, 0, empty)]
    growing = np.geomspace(min(values), max(values) + 1, bins + 1)
    # short bins of a fraction of a token fall together
    edges = np.unique(np.ceil(growing).astype(np.int64))
    documents = [lengths[length] for length in values]
    counts, _ = np.histogram(values, edges, weights=documents)
    rows = [(0, 0, empty)] if empty else []
    for (low, next_low), count in zip(pairwise(edges.tolist()), counts.tolist(), strict=True):
        rows.append((low, next_low - 1, int(count)))
    return rows


def histograms(numbers: Statistics, title: str) -> "Figure":
    """Plots documents by length, in bins that grow by a factor, and ids by rank on logarithmic axes (Zipf's law)."""
    from matplotlib.figure import Figure  # slow to import, and only a plot needs it

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    lengths, ids = figure.subplots(1, 2)
    rows = binned(numbers.lengths)
    lefts = []
    widths = []
    for low, high, _ in rows:
        left = max(low, 0.5)  # a logarithmic axis has no place for 0
        lefts.append(left)
        widths.append(max(high + 1 - left, 0.5))
    documents = [count for _, _, count in rows]
    lengths.bar(
        lefts, documents, widths, align="edge", color="#4c9be8", edgecolor="white", linewidth=0.5
    )
    lengths.set(xscale="log", xlabel="tokens of a document", ylabel="documents")
    times = -np.sort(-numbers.ids[numbers.ids > 0])
    ids.plot(np.arange(1, len(times) + 1), times, color="#57b894")
    ids.set(
        xscale="log",
        yscale="log" if len(times) else "linear",
        xlabel="rank of the id",
        ylabel="times",
    )
    for axes in (lengths, ids):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure
