"""The control plane: what ranks tell each other outside the training step, as Python objects.

    reduce(item, combine)   every rank gets the items of all ranks, combined in rank order
    broadcast(item)         every rank gets the first rank's item
    gather(item)            the first rank gets the items of all ranks; the others get []

The ranks form a tree: groups of up to 32 neighbouring ranks, then the first ranks of these in groups of up to 32, and
so on.

    level 2   0
    level 1   0                      1024  ...
    level 0   0 1 2 ... 31  32 ...   1024 1025 ...

Items go up the tree in rank order and come down it as bytes, their number first. So a rank has at most 31 connections
per level, and what it sends and keeps does not grow with the number of ranks, except in `gather`: there the first rank
of a group keeps the items below it. All ranks call the same verbs in the same order.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from megascratch.parallel.axis import Axis
from megascratch.parallel.groups import GroupMaker
from megascratch.parallel.pending import named
from megascratch.parallel.transport import Transport
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import waiting
from megascratch.runtime.timers import CommTimer, blocked

T = TypeVar("T")

FAN_OUT = 32
"""The most ranks of one group of the tree."""


class Control:
    """The control plane of all ranks.

    Args:
        levels: this rank's groups in the tree, from the bottom up; it is the first rank of all but the last.
    """

    def __init__(self, rank: int, size: int, levels: list[Axis]):
        self.rank = rank
        self.size = size
        self.levels = levels

    @classmethod
    def alone(cls) -> "Control":
        """That of a single process."""
        return cls(0, 1, [])

    @classmethod
    def build(cls, maker: GroupMaker, name: str, waits: CommTimer | None = None) -> "Control":
        """Makes the groups of this rank; called by all ranks.

        Args:
            name: is unique among the control planes of a run.
        """
        levels = []
        for number, ranks in enumerate(tree_groups(maker.rank, maker.world)):
            level = f"{name} level {number}"
            transport = maker.host(level, ranks) if len(ranks) > 1 else None
            place = ranks.index(maker.rank)
            levels.append(Axis(level, len(ranks), place, ranks, transport, waits=waits))
        return cls(maker.rank, maker.world, levels)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def reduce(self, item: T, combine: Callable[[T, T], T]) -> T:
        """The items of all ranks, combined two by two, the lower ranks' on the left; `combine` must be associative."""
        total = item
        for level in self.levels:
            if not level.is_first:
                self._send("reduce", level, pickle.dumps(total), [0])
            for peer in _followers(level):
                total = combine(total, pickle.loads(self._receive("reduce", level, peer)))
        return self._from_first("reduce", total)

    def broadcast(self, item: T) -> T:
        """The first rank's item; what the others pass does not matter."""
        return self._from_first("broadcast", item)

    def gather(self, item: T) -> list[T]:
        """The items of all ranks, in rank order, on the first rank; [] on the others."""
        pickled = [pickle.dumps(item)]  # of this rank and those below it
        for level in self.levels:
            if not level.is_first:
                self._send("gather", level, pickle.dumps(pickled), [0])
            for peer in _followers(level):
                pickled += pickle.loads(self._receive("gather", level, peer))
        if not self.is_first:
            return []
        return [pickle.loads(each) for each in pickled]

    def close(self) -> None:
        """Frees the groups."""
        for level in self.levels:
            if level.transport is not None:
                level.transport.close()

    def _from_first(self, operation: str, item: T) -> T:
        """Sends the first rank's item down the tree."""
        pickled = pickle.dumps(item) if self.is_first else b""
        for level in reversed(self.levels):
            if not level.is_first:
                pickled = self._receive(operation, level, 0)
            self._send(operation, level, pickled, _followers(level))
        if self.is_first:
            return item
        received: T = pickle.loads(pickled)
        return received

    def _send(self, operation: str, level: Axis, pickled: bytes, peers: list[int]) -> None:
        """Sends bytes to ranks of a level, to all of them at once."""
        if not peers:
            return
        content = torch.frombuffer(bytearray(pickled), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        works = []
        for peer in peers:
            with self._talking(operation, level, peer) as transport:
                fault_point("collective.start")
                works.append((peer, transport.send(length, peer)))
                works.append((peer, transport.send(content, peer)))
        for peer, work in works:
            with self._talking(operation, level, peer):
                work.wait()

    def _receive(self, operation: str, level: Axis, peer: int) -> bytes:
        """Receives what a rank of a level sends."""
        with self._talking(operation, level, peer) as transport:
            fault_point("collective.wait")
            length = torch.empty(1, dtype=torch.int64)
            transport.receive(length, peer).wait()
            content = torch.empty(int(length), dtype=torch.uint8)
            transport.receive(content, peer).wait()
            return content.numpy().tobytes()

    @contextmanager
    def _talking(self, operation: str, level: Axis, peer: int) -> Iterator[Transport]:
        """Around a message between this rank and another: names both if it fails, and records that this rank waits."""
        assert level.transport is not None
        other = level.ranks[peer]
        with (
            named(f"{operation} with rank {other}", level.name, self.rank, self.size),
            waiting(f"{operation} over {level.name}", ranks=(self.rank, other)),
            blocked(level.waits),
        ):
            yield level.transport


def tree_groups(rank: int, world: int) -> list[tuple[int, ...]]:
    """The groups of the tree of which a rank is a member, from the bottom up. It does not ask how many ranks a machine
    has, because all ranks must see the same tree even where machines differ in it."""
    groups = []
    step = 1
    while step < world and rank % step == 0:
        width = step * FAN_OUT
        first = rank // width * width
        groups.append(tuple(range(first, min(first + width, world), step)))
        step = width
    return groups


def _followers(level: Axis) -> list[int]:
    """The members of a group to which this rank sends and from which it receives, if it is the first of them."""
    return list(range(1, level.size)) if level.is_first else []
