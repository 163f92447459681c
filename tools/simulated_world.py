"""The other ranks of a world, played to one rank in its own process: a store, process groups and a control plane that
count what the rank asks of them.

The other ranks are like this one: they found the same files, hold as much, and answer what it would answer in their
place. Nothing is carried, so no number of a training step means anything here; what is counted is calls, bytes and
connections.
"""

import operator
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor

from megascratch.checkpoint.backend.local import LocalFile
from megascratch.parallel.axis import Axis
from megascratch.parallel.control import FAN_OUT, Control
from megascratch.parallel.imagined import ImaginedTransport
from megascratch.parallel.lines import RankLine
from megascratch.parallel.transport import Transport
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
    read: Counter[str] = field(default_factory=Counter)
    """Bytes that were read from the files of a checkpoint, by suffix."""
    sockets: int = 0
    """Connections to other ranks: gloo connects all members of a group with each other."""
    lines: dict[str, int] = field(default_factory=dict)
    """Name of each group -> number of its members."""


@contextmanager
def counted_reads(counts: Counts) -> Iterator[None]:
    """Counts what is read from the files of checkpoints."""
    read_into = LocalFile.read_into

    def counted(self: LocalFile, offset: int, *parts: memoryview) -> None:
        counts.read[self.path.suffix] += sum(map(len, parts))
        read_into(self, offset, *parts)

    with patch.object(LocalFile, "read_into", counted):
        yield


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
        return ImaginedTransport(gloo=True, carry=self._count)

    def _count(self, *tensors: Tensor) -> None:
        self.counts.calls["messages"] += 1


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
        if combine is operator.or_:
            everything: Any = -1  # bits of names: the others want all that this rank does not
            self._of_peer = lambda below: everything
        else:
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
