"""The control plane: what ranks tell each other outside the training step, as Python objects.

    reduce(item, combine)   every rank gets the items of all ranks, combined in rank order
    broadcast(item)         every rank gets the first rank's item
    gather(item)            the first rank gets the items of all ranks; the others get []

Called by all ranks in the same order. What a rank sends and keeps does not grow with the number of ranks, except in
`gather`, on the first rank.
"""

from collections.abc import Callable
from functools import reduce
from typing import TypeVar

from megascratch.parallel.axis import Axis
from megascratch.parallel.collectives import all_gather_objects

T = TypeVar("T")


class Control:
    """The control plane of all ranks of an axis."""

    def __init__(self, axis: Axis):
        self.axis = axis

    @classmethod
    def alone(cls) -> "Control":
        """That of a single process."""
        return cls(Axis.alone("world"))

    @property
    def rank(self) -> int:
        return self.axis.rank

    @property
    def size(self) -> int:
        return self.axis.size

    @property
    def is_first(self) -> bool:
        return self.axis.is_first

    def reduce(self, item: T, combine: Callable[[T, T], T]) -> T:
        """The items of all ranks, combined two by two, the lower ranks' on the left."""
        return reduce(combine, all_gather_objects(item, self.axis))

    def broadcast(self, item: T) -> T:
        """The first rank's item; what the others pass does not matter."""
        first: T = all_gather_objects(item if self.is_first else None, self.axis)[0]  # type: ignore[assignment]
        return first

    def gather(self, item: T) -> list[T]:
        """The items of all ranks, in rank order, on the first rank; [] on the others."""
        items = all_gather_objects(item, self.axis)
        return items if self.is_first else []
