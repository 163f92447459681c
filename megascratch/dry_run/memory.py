"""Tells the memory of a step on meta tensors: live bytes by owner over the order of its actions, and the peak.

    with MemoryTracker("cpu") as tracker:
        trainer = Trainer(config, mesh)                      # on the meta device
        tracker.tag_state(trainer.chunks, trainer.data_parallel)
        with tracker.watching(trainer.chunks):
            trainer.train_step(batches, lr, recorder=ActionNames([tracker.at]), phases=PhaseNames([tracker.at]))
    report = tracker.report()

The tracker notes when each storage is made and when it is freed, and reads the owner from that afterwards:

    weights, gradients, optimizer   tagged with `tag`
    messages                        handed to a transport (`tag_messages`) and not tagged otherwise
    temporaries                     freed in the action in which they were made
    other                           made before the first action: batches, constants
    activations                     made in an action and freed in a later one, by the kind of layer that made them
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor, nn

from megascratch.data_parallel.base import DataParallel
from megascratch.dry_run.steps import START
from megascratch.parallel.device_kind import DeviceKind, ImitatesDevice

PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "messages",
    "temporaries",
    "other",
)
ALLOCATED_IN: dict[str, int] = {"cpu": 1, "cuda": 512, "mps": 1}
"""Bytes in units of which a device's allocator gives memory: malloc's are exact, torch's CUDA blocks are rounded up;
those of MPS are not known."""


@dataclass
class Allocation:
    """One storage."""

    nbytes: int
    layer: str  # the kind of layer that ran when it was made, "" for none
    made: int  # number of the span, from `at` to the next `at`
    freed: int | None = None  # number of the span; None: never
    tag: str | None = None
    is_message: bool = False
    died: ref | None = None  # calls back when the storage is freed


class Moment(NamedTuple):
    """One action of the step, in bytes."""

    action: str
    peak: int  # the most that was live during it
    at_peak: Mapping[str, int]  # by part
    at_end: Mapping[str, int]  # by part


class MemoryReport(NamedTuple):
    """The memory of everything that was tracked, in bytes."""

    peak: int
    peak_action: str
    at_peak: Mapping[str, int]  # by part
    activations: Mapping[str, int]  # those of `at_peak`, by kind of layer
    timeline: Sequence[Moment]  # in the order of the actions
    host: int  # memory of the host that an offloaded optimizer uses, if the target is not a CPU


class MemoryTracker(ImitatesDevice):
    """A dispatch mode that notes every storage of a meta tensor.

    Args:
        kind: the device whose paths kernels take, and whose allocator rounds.
    """

    def __init__(self, kind: DeviceKind):
        super().__init__(kind)
        self.unit = ALLOCATED_IN[kind]
        self.spans = [START]
        self.layers = [""]  # the kinds of the layers that are running, innermost last
        self.live: dict[int, Allocation] = {}  # by address of the storage
        self.events: list[tuple[int, Allocation, int]] = []  # span, allocation, +1 made or -1 freed

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._note(result)
        elif isinstance(result, list | tuple):
            for tensor in result:
                if isinstance(tensor, Tensor):
                    self._note(tensor)
        return result

    # ---- what the run tells ------------------------------------------------------------------------------------

    def at(self, action: str) -> None:
        """From now on the step is at this action."""
        self.spans.append(action)
        del self.layers[1:]

    def tag(self, tensors: Iterable[Tensor], part: str) -> None:
        """Says to which part the memory of tensors belongs, from when it was made until it is freed."""
        for tensor in tensors:
            allocation = self._note(tensor)
            if allocation is not None:
                allocation.tag = part

    def tag_messages(self, *tensors: Tensor) -> None:
        """Says that tensors were handed to a transport. Gradients that are reduced in place stay gradients."""
        for tensor in tensors:
            allocation = self._note(tensor)
            if allocation is not None:
                allocation.is_message = True

    def tag_state(self, chunks: Sequence[nn.Module], data_parallel: DataParallel) -> None:
        """Tags weights, gradients and the optimizer's state."""
        for owned in data_parallel.owned:
            offloaded = owned.in_host_memory and self.device_kind != "cpu"
            part = "host" if offloaded else "optimizer"
            self.tag((owned.master, owned.step_grads, *owned.state.values()), part)
        for shard in data_parallel.update.offloaded:
            self.tag([shard.staged], "host" if self.device_kind != "cpu" else "optimizer")
        for buckets in data_parallel.chunks:
            for bucket in buckets.buckets:
                self.tag([bucket.weights], "weights")
                self.tag([bucket.grads], "gradients")
        for chunk in chunks:
            self.tag([*chunk.parameters(), *chunk.buffers()], "weights")

    @contextmanager
    def watching(self, chunks: Sequence[nn.Module]) -> Iterator[None]:
        """Inside the block, what a layer of the chunks makes in a forward bears the kind of the layer."""
        handles = []
        for chunk in chunks:
            for name, module in chunk.named_modules():
                kind = _layer_kind(name)
                handles.append(module.register_forward_pre_hook(self._enters(kind)))
                handles.append(module.register_forward_hook(self._leaves))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enters(self, kind: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            self.layers.append(kind)

        return enter

    def _leaves(self, module: nn.Module, args: Any, result: Any) -> None:
        self.layers.pop()

    # ---- allocations -------------------------------------------------------------------------------------------

    def _note(self, tensor: Tensor) -> Allocation | None:
        """The allocation of a tensor, noted if it is new; None for a tensor that is not on the target."""
        if not tensor.is_meta:
            return None
        storage = tensor.untyped_storage()
        address = storage._cdata
        found = self.live.get(address)
        if found is not None:
            return found
        made = Allocation(storage.nbytes(), self.layers[-1], len(self.spans) - 1)

        def free(_: ref) -> None:
            del self.live[address]
            made.freed = len(self.spans) - 1
            self.events.append((made.freed, made, -1))

        made.died = ref(storage, free)
        self.live[address] = made
        self.events.append((made.made, made, +1))
        return made

    # ---- the report --------------------------------------------------------------------------------------------

    def report(self) -> MemoryReport:
        """The memory of everything so far."""
        now: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
        total = 0
        host = 0
        peaks: dict[int, tuple[int, dict[str, int]]] = {}
        ends: dict[int, dict[str, int]] = {}
        peak = 0
        until = 0  # the event of the peak
        for number, (span, allocation, sign) in enumerate(self.events):
            part = self._part(allocation)
            if part == "host":
                host += allocation.nbytes if sign > 0 else 0
                continue
            size = self._size(allocation)
            if span not in peaks:
                peaks[span] = total, dict(now)
            now[part] += sign * size
            total += sign * size
            if total > peaks[span][0]:
                peaks[span] = total, dict(now)
            ends[span] = dict(now)
            if total > peak:
                peak = total
                until = number
        return self._told(peak, until, host, peaks, ends)

    def _told(
        self,
        peak: int,
        until: int,
        host: int,
        peaks: Mapping[int, tuple[int, dict[str, int]]],
        ends: Mapping[int, dict[str, int]],
    ) -> MemoryReport:
        timeline = []
        before = dict.fromkeys(PARTS, 0)
        for span, action in enumerate(self.spans):
            most, at_peak = peaks.get(span, (sum(before.values()), before))
            before = ends.get(span, before)
            timeline.append(Moment(action, most, at_peak, before))
        activations: dict[str, int] = defaultdict(int)
        for _, allocation, sign in self.events[: until + 1]:
            if self._part(allocation) == "activations":
                activations[allocation.layer] += sign * self._size(allocation)
        span = self.events[until][0] if self.events else 0
        at_peak = peaks[span][1] if span in peaks else before
        held = {layer: size for layer, size in activations.items() if size}
        return MemoryReport(peak, self.spans[span], at_peak, held, timeline, host)

    def _size(self, allocation: Allocation) -> int:
        """Bytes, as the target's allocator gives them."""
        return -(-allocation.nbytes // self.unit) * self.unit

    def _part(self, allocation: Allocation) -> str:
        if allocation.tag is not None:
            return allocation.tag
        if allocation.is_message:
            return "messages"
        if allocation.freed == allocation.made:
            return "temporaries"
        return "other" if self.spans[allocation.made] == START else "activations"


def _layer_kind(name: str) -> str:
    """The kind of the layer with that name in its chunk: "attention" for layers.3.attention.qkv, "block" for the block
    itself, "" for the chunk."""
    parts = name.split(".")
    if parts[0] != "layers":
        return parts[0]
    return parts[2] if len(parts) > 2 else "block"
