"""A transport that never ends what it starts, although `wait` returns, and the laws of who names it."""

from unittest.mock import patch

import torch
from torch import Tensor, nn

from megascratch.config.resolve import ResolvedConfig
from megascratch.parallel import imagined, watched_work
from megascratch.parallel.axis import Axis, Link, Links
from megascratch.parallel.collectives import all_reduce, start_all_gather, start_all_reduce
from megascratch.parallel.traffic import Communication
from megascratch.parallel.transport import Transport
from megascratch.pipeline import runtime
from megascratch.pipeline.passes import compile_order
from megascratch.pipeline.runtime import TensorSpec
from megascratch.pipeline.stage import Stage
from megascratch.runtime.heartbeat import at_step, doing
from megascratch.runtime.launches import Launches
from megascratch.supervision.hang_watch import HangWatch
from tests.support.traffic import imagined_traffic


class DeviceWork:
    """Its `wait` returns at once, as if a device waited. It keeps its tensor, as a work of NCCL does."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.ended = DeviceMark()

    def wait(self) -> None:
        """Does nothing."""

    def is_completed(self) -> bool:
        return self.ended.is_completed()


class DeviceMark:
    """Says when a work has ended."""

    def __init__(self) -> None:
        self.yes = False

    def is_completed(self) -> bool:
        return self.yes


class DeviceTransport(Transport):
    """Starts everything and ends nothing before `end_all`."""

    needs_host_memory = True
    waits_for_end = False

    def __init__(self) -> None:
        self.marks: list[DeviceMark] = []

    def _started(self, tensor: Tensor) -> DeviceWork:
        work = DeviceWork(tensor)
        self.marks.append(work.ended)
        return work

    def all_reduce(self, x, op):
        return self._started(x)

    def all_gather(self, out, x):
        return self._started(out)

    def reduce_scatter(self, out, x):
        return self._started(out)

    def exchange(self, out, x):
        return self._started(out)

    def send(self, x, target):
        return self._started(x)

    def receive(self, x, source):
        return self._started(x)

    def mark(self, work):
        return work.ended

    @property
    def device(self):
        return torch.device("cpu")

    def close(self):
        """Holds nothing."""

    def end_all(self) -> None:
        for mark in self.marks:
            mark.yes = True


class MetaTransport(DeviceTransport):
    """The same, of tensors without memory."""

    needs_host_memory = False

    @property
    def device(self):
        return torch.device("meta")


class Rank:
    """What one rank launches, and a watch that is asked to look after so many seconds."""

    def __init__(self) -> None:
        self.launches = Launches()
        self.said: list[str] = []
        self.watch = HangWatch(100.0, self.said.append, self.launches)

    def __enter__(self) -> "Rank":
        self.patch = patch.object(watched_work, "own_launches", lambda: self.launches)
        self.patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.stop()

    def after(self, seconds: float) -> list[str]:
        """What the watch says after another so many seconds."""
        for launched in self.launches._of_line.values():
            for launch in launched:
                launch.began -= seconds
        self.watch.look()
        return self.said


def axis_of(name: str, *ranks: int) -> Axis:
    return Axis(name, len(ranks), 0, ranks, DeviceTransport())


def a_hang_is_named_by_its_oldest_launch() -> None:
    """The law, over two axes of which both hang."""
    with Rank() as rank:
        tp, dp = axis_of("tp", 4, 5), axis_of("dp", 4, 12, 20)
        at_step(7)
        doing("B3 (micro-batch 3, chunk 1)")
        first = all_reduce(torch.ones(3), dp)
        assert rank.after(60) == [], "60 of 100 seconds"
        doing("F4 (micro-batch 4, chunk 0)")
        at_step(8)
        for _ in range(3):
            all_reduce(first, tp)
            start_all_gather(first, dp).wait()
        said = "; ".join(rank.after(36))
        assert said.startswith("all_reduce over dp number "), said
        assert "(ranks 4 12 20), launched in B3 (micro-batch 3, chunk 1) of step 7" in said, said
        assert said.endswith("timed out: it has not ended for 96 s"), said


def what_ends_late_is_no_hang() -> None:
    """The law, of works that are awaited before and after they end."""
    with Rank() as rank:
        tp, dp = axis_of("tp", 0, 1), axis_of("dp", 0, 2)
        all_reduce(torch.ones(3), tp)
        pending = start_all_reduce(torch.ones(3), dp)
        assert rank.after(90) == [], "90 of 100 seconds"
        for axis in (tp, dp):
            axis.transport.end_all()
        assert rank.after(90) == []
        pending.wait()
        assert rank.after(90) == []


def whichever_hangs_in_a_step_is_named(config: ResolvedConfig, rank: int) -> set[str]:
    """The law, of every communication of a rank's set-up and first step, one after the other. Returns: the operations
    that were named, with axis or peer.

    The rank's program runs in a world that does not exist, whose log says what was asked, and in which action.
    """
    transport = MetaTransport()
    with Rank() as own, patch.object(imagined, "ImaginedTransport", lambda *args: transport):
        asked = imagined_traffic(config, rank, gloo=False)
        launched = [launch for line in own.launches._of_line.values() for launch in line]
    launched.sort(key=lambda launch: launch.began)
    assert len(launched) == len(asked)
    for number, (launch, what) in enumerate(zip(launched, asked, strict=True)):
        own.said.clear()
        own.after(0.0 if number else 100.0)
        said = "; ".join(own.said)
        assert said.startswith(f"{_operation(what)} number "), (said, what)
        if what.during[:1] in "FBWSRI" and what.during[-1:].isdigit():
            assert f"launched in {what.during} (micro-batch " in said, (said, what)
        launch.ending.yes = True
    assert own.launches.oldest() is None
    return {launch.what for launch in launched}


def _operation(what: Communication) -> str:
    if what.peer is None:
        return f"{what.operation} over {what.axis}"
    return f"{what.operation} {'to' if what.operation == 'send' else 'from'} rank {what.peer}"


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor | None, batch: Tensor) -> Tensor:
        return self.layer(batch if x is None else x)


def a_transfer_that_does_not_end_is_named() -> None:
    """The law, of the first stage of two, whose transfers all hang but for the first: the second is named."""
    forward, backward = DeviceTransport(), DeviceTransport()
    links = Links(
        Link(9, 1, forward), Link(1, 9, forward), Link(9, 1, backward), Link(1, 9, backward)
    )
    batches = [torch.ones(2, 1, 3)] * 2
    order = compile_order("1f1b", 2, 2)[0]
    with Rank() as rank:
        at_step(5)
        spec = TensorSpec((2, 1, 3), torch.float32, torch.device("cpu"))
        runtime.run(order, [Stage(OneLayer(), 0, 2)], links, batches, spec, step=5)
        forward.marks[0].yes = True
        said = "; ".join(rank.after(96))
        assert said.startswith("receive from rank 9 number 1 (ranks 9 1), launched in "), said
        assert "in RB0 (micro-batch 0, chunk 0) of step 5, timed out" in said, said
