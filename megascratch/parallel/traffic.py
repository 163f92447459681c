"""Notes what one rank asks of the others: every collective and every message, in order, with its bytes.

An axis or a link with a log has its communications noted as they start (`Pending.start`, `pipeline/runtime.py`),
whatever carries them. Bytes are those of the operation, not of how a library carries it out:

    all_reduce        the tensor                     all_gather, reduce_scatter   the full tensor, of all ranks together
    all_to_all        the tensor                     send, receive, shift         the message

`Communication.sent` says what a rank puts on the wire where the library uses rings (Patarasuk and Yuan 2009, JPDC 69).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Communication(NamedTuple):
    """One communication, as one rank starts it."""

    operation: str  # all_reduce, all_gather, reduce_scatter, all_to_all, shift, send, receive
    axis: str
    ranks: int  # of the axis; 2 for a message
    peer: int | None  # of a message: the global rank of the other end
    nbytes: int
    dtype: torch.dtype
    during: str  # what the rank was doing

    @property
    def sent(self) -> float:
        """Bytes that this rank sends, by rings: every rank sends each part of the tensor to its neighbour once for each
        other rank, and an all-reduce is a reduce-scatter and an all-gather."""
        if self.peer is not None:
            return float(self.nbytes) if self.operation == "send" else 0.0
        if self.operation == "shift":
            return float(self.nbytes)
        passes = 2 if self.operation == "all_reduce" else 1
        return passes * self.nbytes * (self.ranks - 1) / self.ranks


class TrafficLog:
    """The communications of one rank, in the order in which it started them."""

    def __init__(self) -> None:
        self.communications: list[Communication] = []
        self.during = ""  # noted with each communication

    def at(self, during: str) -> None:
        """Says what the rank does from now on."""
        self.during = during

    def collective(self, operation: str, axis: str, ranks: int, result: Tensor) -> None:
        """Notes a collective whose result on this rank is `result`."""
        nbytes = result.nbytes * ranks if operation == "reduce_scatter" else result.nbytes
        self._add(Communication(operation, axis, ranks, None, nbytes, result.dtype, self.during))

    def message(self, operation: str, axis: str, peer: int, message: Tensor) -> None:
        """Notes a message to or from the global rank `peer`."""
        nbytes = message.nbytes
        self._add(Communication(operation, axis, 2, peer, nbytes, message.dtype, self.during))

    def _add(self, communication: Communication) -> None:
        self.communications.append(communication)
