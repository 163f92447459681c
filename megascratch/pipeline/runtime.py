"""Executes the actions of one pipeline rank: a single loop for all schedules.

A receive is posted where the order says so, and the action that uses it waits for it. A send is started and its buffer
is freed later. The messages of a link have a fixed order (`passes.check`), so no tags are needed, and gloo and NCCL run
the same code.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megascratch.parallel.axis import Link, Links
from megascratch.parallel.host_staging import HostTransfer, needs_host_staging
from megascratch.parallel.pending import CommunicationError, reason
from megascratch.parallel.transport import Work
from megascratch.parallel.watched_work import WatchedWork
from megascratch.pipeline.recorder import NullRecorder
from megascratch.pipeline.schedule import Action, Placement
from megascratch.pipeline.stage import Stage
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import doing, next_number, waiting
from megascratch.runtime.timers import blocked

OnBackward = Callable[[Action, bool], None]
Key = tuple[int, int]  # micro-batch, chunk


class TransferError(CommunicationError):
    """A send or receive between stages failed or timed out."""


class TensorSpec(NamedTuple):
    """The tensors sent between stages: [s, b, h] (s / tp under sequence parallelism)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def run(
    order: Sequence[Action],
    stages: Sequence[Stage],
    links: Links | None,
    batches: Sequence[Any],
    spec: TensorSpec,
    loss_grad: float | Tensor | Sequence[float] = 1.0,
    on_backward: OnBackward | None = None,
    step: int = 0,
    placement: Placement | None = None,
    recorder: NullRecorder | None = None,
) -> list[Tensor]:
    """Runs one step of this rank.

    Args:
        order: this rank's row of `compile_order`.
        stages: one per chunk.
        links: the ring; None for one rank.
        batches: one per micro-batch, passed to the modules unchanged (None if a stage reads none).
        loss_grad: gradient of the loss sums, e.g. loss scale / valid tokens; a list has one for each micro-batch.
        on_backward: called before each B, I and W, with True for the chunk's last micro-batch: then each weight gets
            its last gradient of this step (with I and W: those of matrix products in W, all others in I).
        step: for error messages.
        placement: of the chunks on the ranks; default: a loop.
        recorder: records when each action begins and ends; default: none.

    Returns:
        The loss sum of each micro-batch on the rank with the last virtual stage, [] on other ranks.

    Raises:
        CommunicationError: a transfer, or a collective inside a stage, failed or timed out; names action, stage,
            micro-batch, chunk, step and peer or axis.
    """
    player = _Player(
        stages, links, batches, spec, loss_grad, on_backward, step, placement, recorder
    )
    try:
        return player.play(order)
    except BaseException:
        for stage in stages:
            stage.reset()
        raise


@torch.no_grad()
def evaluate(
    order: Sequence[Action],
    stages: Sequence[Stage],
    links: Links | None,
    batches: Sequence[Any],
    spec: TensorSpec,
    step: int = 0,
    placement: Placement | None = None,
) -> list[Tensor]:
    """Like `run` for an order without backwards; keeps no activations."""
    return run(order, stages, links, batches, spec, step=step, placement=placement)


def connect(links: Links, device: torch.device) -> None:
    """Opens each link by sending one number over it; called once by every rank before the first step.

    NCCL creates a communicator when a link is first used, and both ends wait for it. Here all ranks open their links in
    the same order, so that a step cannot deadlock on it.
    """
    me = links.forward_out.source
    token = torch.zeros(1, device=device)
    forward = {links.forward_in, links.forward_out}
    backward = {links.backward_in, links.backward_out}
    for side in (forward, backward):
        for link in sorted(side, key=lambda link: (link.source, link.target)):
            try:
                _start(link, token, link.source == me).wait()
            except RuntimeError as error:
                raise CommunicationError(
                    f"no link from rank {link.source} to rank {link.target}, seen from rank {me}: {reason(error)}"
                ) from error


def _start(link: Link, tensor: Tensor, outwards: bool) -> Work:
    other = link.target if outwards else link.source
    if link.log is not None:
        link.log.message("send" if outwards else "receive", "pp", other, tensor)
    peer = link.number_of(other)
    if needs_host_staging(tensor, link.transport):
        return HostTransfer(tensor, peer, link.transport, outwards)
    start = link.transport.send if outwards else link.transport.receive
    work = start(tensor, peer)
    if link.transport.waits_for_end:
        return work
    what = f"send to rank {link.target}" if outwards else f"receive from rank {link.source}"
    ranks = (link.source, link.target)
    return WatchedWork(work, link.transport, what, what, next_number(what), ranks)


class _Transfer(NamedTuple):
    action: Action
    work: Work
    tensor: Tensor  # kept alive until the transfer ends


class _Player:
    """The state of one step: what was computed or posted and not yet used."""

    def __init__(
        self,
        stages: Sequence[Stage],
        links: Links | None,
        batches: Sequence[Any],
        spec: TensorSpec,
        loss_grad: float | Tensor | Sequence[float],
        on_backward: OnBackward | None,
        step: int,
        placement: Placement | None,
        recorder: NullRecorder | None,
    ):
        self.stages = stages
        self.links = links
        self.batches = batches
        self.spec = spec
        self.loss_grad = loss_grad
        self.on_backward = on_backward
        self.step = step
        self.placement = placement or Placement(stages[0].count // len(stages), len(stages))
        self.recorder = recorder or NullRecorder()
        self.outputs: dict[Key, Tensor] = {}  # computed, for the next virtual stage
        self.input_grads: dict[Key, Tensor] = {}  # computed, for the previous virtual stage
        self.inputs: dict[Key, _Transfer] = {}  # posted
        self.output_grads: dict[Key, _Transfer] = {}  # posted
        self.sends: dict[Action, _Transfer] = {}  # oldest first
        self.losses: dict[int, Tensor] = {}

    def play(self, order: Sequence[Action]) -> list[Tensor]:
        verbs = {
            "F": self.forward,
            "B": self.backward,
            "I": self.backward_input,
            "W": self.backward_weight,
            "SF": self.send_output,
            "RF": self.receive_input,
            "SB": self.send_grad,
            "RB": self.receive_grad,
        }
        for action in order:
            try:
                doing(f"{action} (micro-batch {action.microbatch}, chunk {action.chunk})")
                self.recorder.begins(action)
                verbs[action.op](action)
                self.recorder.ends(action)
            except TransferError:
                raise
            except (
                CommunicationError
            ) as error:  # raised by a layer: add what the stage was doing (law 11)
                raise CommunicationError(f"{self._where(action)} {error}") from error
        doing("the last sends")
        for transfer in self.sends.values():
            self._wait(transfer)
        return [self.losses[m] for m in sorted(self.losses)]

    # ---- compute -----------------------------------------------------------------------------------------------

    def forward(self, action: Action) -> None:
        fault_point("forward.begin")
        stage = self.stages[action.chunk]
        m = action.microbatch
        x = self._input(stage, action)
        y = stage.forward(m, x, self.batches[m])
        if stage.is_last:
            self.losses[m] = y
        else:
            self.outputs[m, action.chunk] = y
        fault_point("forward.end")

    def backward(self, action: Action) -> None:
        fault_point("backward.begin")
        stage = self._begin(action)
        output_grad = self._output_grad(stage, action)
        input_grad = stage.backward(action.microbatch, output_grad)
        self._keep(action, input_grad)
        fault_point("backward.end")

    def backward_input(self, action: Action) -> None:
        fault_point("backward.begin")
        stage = self._begin(action)
        output_grad = self._output_grad(stage, action)
        input_grad = stage.backward_input(action.microbatch, output_grad)
        self._keep(action, input_grad)
        fault_point("backward.end")

    def backward_weight(self, action: Action) -> None:
        fault_point("weight.begin")
        self._begin(action).backward_weight(action.microbatch)

    def _begin(self, action: Action) -> Stage:
        if self.on_backward is not None:
            self.on_backward(action, action.microbatch == len(self.batches) - 1)
        return self.stages[action.chunk]

    def _keep(self, action: Action, input_grad: Tensor | None) -> None:
        if input_grad is not None:
            self.input_grads[action.microbatch, action.chunk] = input_grad

    def _input(self, stage: Stage, action: Action) -> Tensor | None:
        if stage.is_first:
            return None
        _, m, chunk = action
        arrival = self.inputs.pop((m, chunk), None)
        if arrival is None:
            return self.outputs.pop((m, chunk - 1))
        return self._arrived(arrival)

    def _output_grad(self, stage: Stage, action: Action) -> Tensor:
        _, m, chunk = action
        if stage.is_last:
            loss = self.losses[m]
            if isinstance(self.loss_grad, Tensor):
                return self.loss_grad.to(loss)
            if isinstance(self.loss_grad, Sequence):
                return torch.full_like(loss, self.loss_grad[m])
            return torch.full_like(loss, self.loss_grad)
        arrival = self.output_grads.pop((m, chunk), None)
        if arrival is None:
            return self.input_grads.pop((m, chunk + 1))
        output_grad = self._arrived(arrival)
        sent = self.sends.pop(Action("SF", m, chunk), None)
        if sent is not None:
            self._wait(sent)  # returns at once: the gradient shows that it has arrived
        return output_grad

    # ---- transfers ---------------------------------------------------------------------------------------------

    def send_output(self, action: Action) -> None:
        self._send(action, self.outputs.pop((action.microbatch, action.chunk)))

    def send_grad(self, action: Action) -> None:
        self._send(action, self.input_grads.pop((action.microbatch, action.chunk)))

    def receive_input(self, action: Action) -> None:
        self.inputs[action.microbatch, action.chunk] = self._receive(action)

    def receive_grad(self, action: Action) -> None:
        self.output_grads[action.microbatch, action.chunk] = self._receive(action)

    def _send(self, action: Action, tensor: Tensor) -> None:
        if tensor.shape != self.spec.shape or tensor.dtype != self.spec.dtype:
            raise ValueError(
                f"{self._where(action)} would send {list(tensor.shape)} {tensor.dtype}, but "
                f"{list(self.spec.shape)} {self.spec.dtype} is expected"
            )
        fault_point("transfer.send")
        while self.sends:
            oldest = next(iter(self.sends.values()))
            if not oldest.work.is_completed():  # always with gloo
                break
            self._wait(self.sends.pop(oldest.action))
        self.sends[action] = self._post(action, tensor.contiguous(), outwards=True)

    def _receive(self, action: Action) -> _Transfer:
        fault_point("transfer.receive")
        tensor = torch.empty(self.spec.shape, dtype=self.spec.dtype, device=self.spec.device)
        return self._post(action, tensor, outwards=False)

    def _post(self, action: Action, tensor: Tensor, outwards: bool) -> _Transfer:
        try:
            return _Transfer(action, _start(self._link(action), tensor, outwards), tensor)
        except RuntimeError as error:
            raise self._failure(action, error) from error

    def _arrived(self, transfer: _Transfer) -> Tensor:
        tensor = self._wait(transfer)
        self.recorder.arrived(transfer.action)
        return tensor

    def _wait(self, transfer: _Transfer) -> Tensor:
        fault_point("transfer.wait")
        try:
            waits = self._link(transfer.action).waits
            with waiting(f"{transfer.action} {self._ends(transfer.action)}"), blocked(waits):
                transfer.work.wait()
        except RuntimeError as error:
            raise self._failure(transfer.action, error) from error
        return transfer.tensor

    def _link(self, action: Action) -> Link:
        """In the second half of a V outputs go to the previous rank, over the links of gradients in the first half."""
        assert self.links is not None  # a single rank has no transfers
        down = self.placement.goes_down(action)
        if action.op in ("SF", "SB"):
            return self.links.forward_out if down else self.links.backward_out
        return self.links.forward_in if down else self.links.backward_in

    def _failure(self, action: Action, error: RuntimeError) -> TransferError:
        return TransferError(f"{self._where(action)} {self._ends(action)} failed: {reason(error)}")

    def _ends(self, action: Action) -> str:
        link = self._link(action)
        return f"to rank {link.target}" if action.op in ("SF", "SB") else f"from rank {link.source}"

    def _where(self, action: Action) -> str:
        stage = self.stages[action.chunk]
        rank = f" on rank {self.links.forward_out.source}" if self.links else ""
        return (
            f"{action} (micro-batch {action.microbatch}, chunk {action.chunk}) of step {self.step}{rank}, "
            f"stage {stage.index} of {stage.count},"
        )
