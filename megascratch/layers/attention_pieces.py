"""Cuts what queries see into pieces that a kernel takes without a mask: blocks that are seen whole, and triangles.

Queries and keys are at any positions. Queries that follow each other, in one document, form a run; a run sees the keys
from the beginning of its document, or of its window, up to itself:

    keys of earlier positions   whole    seen by every query of the run
    keys of the same positions  causal   a triangle
    keys at a window's edge     dense    a small block with a mask, for few queries at once

Memory is that of the pieces, and grows with the number of queries, not with its square. Pure arithmetic.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

ROWS = 128  # queries of a dense block

Kind = Literal["whole", "causal", "dense"]


@dataclass(frozen=True)
class Positions:
    """Queries and keys by their positions in the sample, in host memory."""

    queries: np.ndarray
    """[q]"""
    keys: np.ndarray
    """[k]"""
    starts: np.ndarray | None = None
    """[b, q] where the document of each query begins."""

    def part(self, queries: slice, keys: slice, samples: slice) -> "Positions":
        starts = None if self.starts is None else self.starts[samples, queries]
        return Positions(self.queries[queries], self.keys[keys], starts)


class Piece(NamedTuple):
    """Queries and keys by their places in the tensors."""

    queries: slice
    keys: slice
    kind: Kind


class RowBlock(NamedTuple):
    """Neighbouring queries, and all keys that any of them sees, by their places in the tensors."""

    queries: slice
    keys: slice


class QueryRun(NamedTuple):
    """Queries at neighbouring positions, and the pieces of keys that they see: none, one, or several to be merged."""

    queries: slice
    pieces: tuple[Piece, ...]


def runs_of(positions: Positions, window: int | None) -> list[list[QueryRun]] | None:
    """The runs of each sample, in order; one list for all samples if they have the same documents. None: the keys do
    not ascend, so that they are not cut."""
    keys = positions.keys
    if len(keys) > 1 and (np.diff(keys) <= 0).any():
        return None
    key_runs = _neighbours(keys)
    starts = positions.starts
    rows = [None] if starts is None else list(starts)
    if starts is not None and len(starts) > 1 and (starts == starts[0]).all():
        rows = [starts[0]]
    return [_runs(positions.queries, keys, key_runs, row, window) for row in rows]


def row_blocks(positions: Positions, window: int | None) -> list[RowBlock]:
    """A few queries at once, for attention in plain steps, which has a number for each pair of them."""
    queries = positions.queries
    keys = positions.keys
    oldest = np.zeros_like(queries) if positions.starts is None else positions.starts.min(0)
    if window is not None:
        oldest = np.maximum(oldest, queries - window + 1)
    ascending = len(keys) < 2 or bool((np.diff(keys) > 0).all())
    blocks = []
    for first in range(0, len(queries), ROWS):
        rows = slice(first, min(first + ROWS, len(queries)))
        columns = slice(0, len(keys))
        if ascending:
            low = int(np.searchsorted(keys, oldest[rows].min()))
            high = int(np.searchsorted(keys, queries[rows].max(), side="right"))
            columns = slice(low, max(low, high))
        blocks.append(RowBlock(rows, columns))
    return blocks


def _neighbours(positions: np.ndarray, breaks: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Places [first, end) of positions that follow each other; `breaks` [n - 1] adds ends."""
    if len(positions) == 0:
        return []
    ends = np.diff(positions) != 1
    if breaks is not None:
        ends = ends | breaks
    firsts = np.concatenate(([0], np.flatnonzero(ends) + 1))
    stops = np.append(firsts[1:], len(positions))
    return list(zip(firsts.tolist(), stops.tolist(), strict=True))


def _runs(
    queries: np.ndarray,
    keys: np.ndarray,
    key_runs: list[tuple[int, int]],
    starts: np.ndarray | None,
    window: int | None,
) -> list[QueryRun]:
    """The runs of one sample."""
    breaks = None if starts is None else np.diff(starts) != 0
    found = []
    for first, end in _neighbours(queries, breaks):
        start = 0 if starts is None else int(starts[first])
        edges = _edges(int(queries[first]), int(queries[end - 1]) + 1, keys, key_runs)
        for low, high in zip(edges, edges[1:], strict=False):
            place = first + low - int(queries[first])
            span = _Span(place, low, high, start)
            if window is None or high - window <= start:
                found.append(_run(span, keys))
            else:
                found += _windowed(span, keys, window)
    return found


def _edges(low: int, high: int, keys: np.ndarray, key_runs: list[tuple[int, int]]) -> list[int]:
    """Positions [low, high) cut where neighbouring keys begin and end, so that the keys of a part's own positions are
    all there, or none is."""
    edges = {low, high}
    for first, end in key_runs:
        for edge in (int(keys[first]), int(keys[end - 1]) + 1):
            if low < edge < high:
                edges.add(edge)
    return sorted(edges)


class _Span(NamedTuple):
    """Queries at positions [low, high) from a place on, in a document that begins at `start`."""

    place: int
    low: int
    high: int
    start: int

    @property
    def queries(self) -> slice:
        return slice(self.place, self.place + self.high - self.low)


def _run(span: _Span, keys: np.ndarray) -> QueryRun:
    """The earlier keys of the document, and the triangle."""
    first, before, end = np.searchsorted(keys, (span.start, span.low, span.high)).tolist()
    pieces = []
    if before > first:
        pieces.append(Piece(span.queries, slice(first, before), "whole"))
    if end > before:
        pieces.append(Piece(span.queries, slice(before, end), "causal"))
    return QueryRun(span.queries, tuple(pieces))


def _windowed(span: _Span, keys: np.ndarray, window: int) -> list[QueryRun]:
    """A few queries at once, each with the keys of all their windows."""
    found = []
    for low in range(span.low, span.high, ROWS):
        high = min(low + ROWS, span.high)
        part = _Span(span.place + low - span.low, low, high, span.start)
        if high - window <= span.start:
            found.append(_run(part, keys))
            continue
        oldest = max(span.start, low - window + 1)
        first, end = np.searchsorted(keys, (oldest, high)).tolist()
        pieces: tuple[Piece, ...] = ()
        if end > first:
            pieces = (Piece(part.queries, slice(first, end), "dense"),)
        found.append(QueryRun(part.queries, pieces))
    return found
