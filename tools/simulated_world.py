"""The other ranks of a world, played to one rank in its own process: a store, process groups and a control plane that
count what the rank asks of them.

The other ranks are like this one: they found the same files, hold as much, and answer what it would answer in their
place. Nothing is carried, so no number of a training step means anything here; what is counted is calls, bytes and
connections.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megascratch.parallel.axis import Axis
from megascratch.parallel.control import FAN_OUT, Control
from megascratch.parallel.lines import RankLine
from megascratch.parallel.transport import Transport, Work
from megascratch.training.start.once import machine

T = TypeVar("T")


@dataclass
class Counts:
    """What a rank has asked of the others since it began."""

    calls: Counter[str] = field(default_factory=Counter)
    """Calls of the store by name, `groups` that were made, `messages` that were sent or received."""
    keys: set[str] = field(default_factory=set)
    """Keys of the store that the rank has written."""
    nbytes: Counter[str] = field(default_factory=Counter)
    """Bytes that went through the `store`, and in `objects` of the control plane."""
    sockets: int = 0
    """Connections to other ranks: gloo connects all members of a group with each other."""
    lines: dict[str, int] = field(default_factory=dict)
    """Name of each group -> number of its members."""


class PlayedStore(dist.Store):  # type: ignore[misc]
    """The store of a rendezvous, with the entries of ranks that do not exist.

    Args:
        answers: what another rank has answered for all of its machine or of the run, by key; see `written`.
        first_of_machine: whether this rank asks first on its machine, and so answers itself.
    """

    def __init__(
        self, rank: int, counts: Counts, answers: dict[str, bytes], first_of_machine: bool
    ):
        super().__init__()
        self.rank = rank
        self.counts = counts
        self.answers = answers
        self.first_of_machine = first_of_machine
        self.written: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else bytes(value)
        self._count("set", content)
        self.counts.keys.add(key)
        self.written[key] = content

    def get(self, key: str) -> bytes:
        content = self._content(key)
        self._count("get", content)
        return content

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        contents = [self._content(key) for key in keys]
        self._count("multi_get", *contents)
        return contents

    def add(self, key: str, amount: int) -> int:
        self._count("add")
        self.counts.keys.add(key)
        first = self.first_of_machine if machine() in key else self.rank == 0
        return amount if first else 2 * amount

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        self._count("wait")

    def check(self, keys: Sequence[str]) -> bool:
        self._count("check")
        return True

    def has_extended_api(self) -> bool:
        return True

    def set_timeout(self, timeout: timedelta) -> None:
        """Nothing is waited for."""

    def _count(self, call: str, *contents: bytes) -> None:
        self.counts.calls[call] += 1
        self.counts.nbytes["store"] += sum(map(len, contents))

    def _content(self, key: str) -> bytes:
        """What is there: this rank's entry, the answer of the rank that was asked first, or what another rank has
        written, which is what this one wrote under its own number."""
        if key in self.written:
            return self.written[key]
        if key in self.answers:
            return self.answers[key]
        question, _, entry = key.rpartition("/")
        if entry == "verdict":
            return b""  # nothing is wrong
        return self.written[f"{question}/{self.rank}"]


class _Done:
    """A communication that has ended."""

    def wait(self) -> None:
        """Returns at once."""

    def is_completed(self) -> bool:
        return True


class PlayedTransport(Transport):
    """Carries nothing: every other rank is taken to have sent what this rank sent."""

    needs_host_memory = True

    def __init__(self, size: int, counts: Counts):
        self.size = size
        self.counts = counts

    def all_reduce(self, x: Tensor, op: dist.ReduceOp.RedOpType) -> Work:
        if op == dist.ReduceOp.SUM:
            x.mul_(self.size)
        return self._count()

    def all_gather(self, out: Tensor, x: Tensor) -> Work:
        out.copy_(x.repeat(self.size, *(1 for _ in x.shape[1:])))
        return self._count()

    def reduce_scatter(self, out: Tensor, x: Tensor) -> Work:
        out.copy_(x[: len(out)] * self.size)
        return self._count()

    def exchange(self, out: Tensor, x: Tensor) -> Work:
        out.copy_(x)
        return self._count()

    def send(self, x: Tensor, target: int) -> Work:
        return self._count()

    def receive(self, x: Tensor, source: int) -> Work:
        x.zero_()
        return self._count()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def close(self) -> None:
        """There is nothing to free."""

    def _count(self) -> Work:
        self.counts.calls["messages"] += 1
        return _Done()


class CountedGroups:
    """A `GroupMaker` (`megascratch.parallel.groups`) that counts the groups of gloo that it is asked for."""

    needs_host_memory = True

    def __init__(self, rank: int, world: int, counts: Counts):
        self.rank = rank
        self.world = world
        self.counts = counts

    def line(self, line: RankLine) -> Transport | None:
        if len(line.mine) == 1:
            return None
        return self._made(line.name, len(line.mine))

    def everyone(self) -> None:
        return None

    def host(self, name: str, ranks: tuple[int, ...]) -> Transport:
        return self._made(name, len(ranks))

    def _made(self, name: str, size: int) -> Transport:
        self.counts.calls["groups"] += 1
        self.counts.sockets += size - 1
        self.counts.lines[name] = size
        return PlayedTransport(size, self.counts)


class PlayedControl(Control):
    """The control plane of a rank whose peers send what it sends itself.

    Args:
        control: whose tree it has.
        said: what the first rank has sent to all, in the order of the calls; the first rank appends to it.
    """

    def __init__(self, control: Control, counts: Counts, said: list[bytes]):
        super().__init__(control.rank, control.size, control.levels)
        self.counts = counts
        self.said = said
        self.heard = 0  # how many of `said`
        self._of_peer: Callable[[int], Any] = lambda below: None

    def reduce(self, item: T, combine: Callable[[T, T], T]) -> T:
        self._of_peer = lambda below: reduce(combine, [item] * below)
        return super().reduce(item, combine)

    def gather(self, item: T) -> list[T]:
        pickled = pickle.dumps(item)
        self._of_peer = lambda below: [pickled] * below
        return super().gather(item)

    def _send(self, operation: str, level: Axis, pickled: bytes, peers: list[int]) -> None:
        for _ in peers:
            self._count(pickled)

    def _receive(self, operation: str, level: Axis, peer: int) -> bytes:
        if not level.is_first:
            self.heard += 1
            pickled = self.said[self.heard - 1]
        else:
            below = FAN_OUT ** self.levels.index(level)
            rank = level.ranks[peer]
            pickled = pickle.dumps(self._of_peer(min(below, self.size - rank)))
        self._count(pickled)
        return pickled

    def _from_first(self, operation: str, item: T) -> T:
        if self.is_first:
            self.said.append(pickle.dumps(item))
        return super()._from_first(operation, item)

    def _count(self, pickled: bytes) -> None:
        self.counts.calls["messages"] += 1
        self.counts.nbytes["objects"] += len(pickled)
