"""A communication that is remembered until it has ended, on transports whose `wait` does not wait for that (NCCL)."""

from collections.abc import Sequence

from megascratch.parallel.transport import Transport, Work
from megascratch.runtime.launches import own_launches


class WatchedWork:
    """A work, as its transport has started it."""

    def __init__(
        self,
        work: Work,
        transport: Transport,
        line: str,
        what: str,
        number: int,
        ranks: Sequence[int],
    ):
        """
        Args:
            line: the axis or link, whose communications end in the order of their launch.
            what: the operation, with its axis or peer.
            number: that of this communication among those of its axis or peer.
            ranks: those that take part.
        """
        self.work = work
        self.transport = transport
        self.launch = own_launches().add(line, what, number, ranks, work)

    def wait(self) -> None:
        """Lets the device wait. From then on the transport's mark stands for the work, which would keep its tensors."""
        self.work.wait()
        self.launch.ending = self.transport.mark(self.work)

    def is_completed(self) -> bool:
        return self.work.is_completed()
