"""Maps rank numbers to positions on the parallel axes and to process groups. Pure arithmetic, without torch or a
cluster.

A rank number counts through the axes like an odometer: the last axis changes fastest. The dense view is
``pp, dp, cp, tp`` (tp fastest); experts see the *same* ranks through a second grid ``pp, edp, ep, etp``.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Axis sizes, outermost first, e.g. ``{"pp": 2, "dp": 4, "cp": 1, "tp": 2}``."""

    sizes: dict[str, int]

    @classmethod
    def dense(cls, tp: int = 1, pp: int = 1, dp: int = 1, cp: int = 1) -> "Grid":
        return cls({"pp": pp, "dp": dp, "cp": cp, "tp": tp})

    def expert_view(self, ep: int = 1, etp: int = 1) -> "Grid":
        """The same ranks as seen by expert weights; pipeline stages are the same in both views."""
        inner = self.world // self.sizes["pp"]
        edp, rest = divmod(inner, ep * etp)
        if rest:
            raise ValueError(
                f"expert-model-parallel-size x expert-tensor-parallel-size ({ep} x {etp}) "
                f"must divide the {inner} ranks of a pipeline stage"
            )
        return Grid({"pp": self.sizes["pp"], "edp": edp, "ep": ep, "etp": etp})

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
