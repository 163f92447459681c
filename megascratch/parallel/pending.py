"""A communication under way, and the error that names the operation, the axis and the rank when it fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from megascratch.parallel.axis import Axis
from megascratch.parallel.transport import Transport, Work
from megascratch.parallel.watched_work import WatchedWork
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import next_number, waiting
from megascratch.runtime.timers import blocked


class CommunicationError(RuntimeError):
    """A collective or transfer failed or timed out; the text names the operation, the axis and the rank."""


@contextmanager
def named(operation: str, axis: str, rank: int, size: int) -> Iterator[None]:
    """Turns an error of a communication inside the block into a CommunicationError that names it (law 11)."""
    try:
        yield
    except CommunicationError:
        raise
    except RuntimeError as error:
        raise CommunicationError(
            f"{operation} over {axis} failed on rank {rank} of {size}: {reason(error)}"
        ) from error


def reason(error: RuntimeError) -> str:
    """The first line of the library's error, or, if it only follows from another rank's end, a hint to that rank."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "closed by peer" in text or "reset by peer" in text:
        return "another rank has ended; see the message of that rank"
    return text


class Pending:
    """A collective under way. `wait` returns its result; `finish`, if given, is called once the communication ends."""

    def __init__(
        self,
        operation: str,
        axis: Axis,
        work: Work | None,
        result: Tensor,
        finish: Callable[[], object] | None = None,
    ):
        self.operation = operation
        self.axis = axis
        self.work = work
        self.result = result
        self.finish = finish
        self.number = 0 if work is None else next_number(axis.name)

    @classmethod
    def start(
        cls, operation: str, axis: Axis, result: Tensor, launch: Callable[[Transport], Work]
    ) -> "Pending":
        """Launches a collective over the axis, which has more than one rank."""
        fault_point("collective.start")
        with named(operation, axis.name, axis.rank, axis.size):
            transport = axis.transport
            assert transport is not None
            if axis.log is not None:
                axis.log.collective(operation, axis.name, axis.size, result)
            work = launch(transport)
            pending = cls(operation, axis, work, result)
            if not transport.waits_for_end:
                what = f"{operation} over {axis.name}"
                pending.work = WatchedWork(
                    work, transport, axis.name, what, pending.number, axis.ranks
                )
            return pending

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self.work is None or self.work.is_completed()

    def wait(self) -> Tensor:
        if self.work is not None:
            fault_point("collective.wait")
            axis = self.axis
            with (
                named(self.operation, axis.name, axis.rank, axis.size),
                waiting(f"{self.operation} over {axis.name}", self.number, axis.ranks),
                blocked(axis.waits),
            ):
                self.work.wait()
            if self.finish is not None:
                self.finish()
            self.work = self.finish = None
        return self.result
