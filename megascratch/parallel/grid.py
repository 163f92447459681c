"""Maps rank numbers to positions on the parallel axes and to process groups. Pure arithmetic, without torch or a
cluster.

A rank number counts through the axes of a view like an odometer: the last axis changes fastest. The views are in
`config/layout.py`.
"""

import math
from dataclasses import dataclass

import numpy as np

from megascratch.config.layout import Layout


@dataclass(frozen=True)
class Grid:
    """Axis sizes, outermost first, e.g. ``{"pp": 2, "dp": 4, "cp": 1, "tp": 2}``."""

    sizes: dict[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())

    @property
    def world(self) -> int:
        return math.prod(self.shape)

    def coords(self, rank: int) -> dict[str, int]:
        """Rank number -> position on every axis."""
        position = np.unravel_index(rank, self.shape)
        return {axis: int(at) for axis, at in zip(self.sizes, position, strict=True)}

    def rank(self, **coords: int) -> int:
        """Position on every axis -> rank number; an axis that is not given is at 0."""
        position = tuple(coords.get(axis, 0) for axis in self.sizes)
        return int(np.ravel_multi_index(position, self.shape))

    def group(self, rank: int, *axes: str) -> list[int]:
        """The ranks that differ from `rank` only along `axes`, in rank order."""
        here = self.coords(rank)
        line = tuple(slice(None) if axis in axes else here[axis] for axis in self.sizes)
        found: list[int] = self._ranks()[line].ravel().tolist()
        return found

    def groups(self, *axes: str) -> list[list[int]]:
        """Every group along `axes`, each once, ordered by its first rank."""
        outer = [dim for dim, axis in enumerate(self.sizes) if axis not in axes]
        inner = [dim for dim, axis in enumerate(self.sizes) if axis in axes]
        length = math.prod(self.shape[dim] for dim in inner)
        rows = self._ranks().transpose(outer + inner).reshape(-1, length)
        found: list[list[int]] = rows.tolist()
        return found

    def _ranks(self) -> np.ndarray:
        """All rank numbers, one dim per axis."""
        return np.arange(self.world).reshape(self.shape)


@dataclass(frozen=True)
class Position:
    """One rank of a layout; from both follows what the rank holds of each weight."""

    layout: Layout
    rank: int = 0

    def coords(self, view: str) -> dict[str, int]:
        """The rank's position on every axis of a view."""
        return Grid(self.layout.sizes(view)).coords(self.rank)
