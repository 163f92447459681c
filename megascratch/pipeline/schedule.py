"""Pipeline schedules (GPipe, 1F1B, interleaved, zero bubble, DualPipeV): the list of actions of each rank.

An `Action` is an operation on one micro-batch and one model chunk; it prints and parses as `F3`, `B3.1`, `W3`.

    F  forward              B  backward (input and weights at once)
    I  input gradient       W  weight gradient (after I)
    SF RF  send / receive the output of a forward        SB RB  send / receive the gradient of an input

A `Placement` assigns the slices of the model to the ranks: in a loop, or in a V (from the first rank to the last and
back). A transfer has the chunk number of the rank that runs it: in a loop SF3.0 on the last rank arrives as RF3.1 on
the first.

In every schedule a chunk runs its backwards in the order of the micro-batches, so that gradients are summed in one
order and all schedules agree to the last bit. A new schedule is one more function and one more row of `SCHEDULES`.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from megascratch.config.errors import UserError

COMPUTE = ("F", "B", "I", "W")
# The other end of each transfer: the operation there, and how many virtual stages away it is.
OTHER_END = {"SF": ("RF", 1), "RF": ("SF", -1), "SB": ("RB", -1), "RB": ("SB", 1)}
_PATTERN = re.compile(rf"({'|'.join((*COMPUTE, *OTHER_END))})(\d+)(?:\.(\d+))?")


class Action(NamedTuple):
    """One step of one rank."""

    op: str
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        text = f"{self.op}{self.microbatch}"
        return f"{text}.{self.chunk}" if self.chunk else text

    @classmethod
    def parse(cls, text: str) -> "Action":
        """The action that prints as `text`. Raises: ValueError if there is none."""
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise ValueError(
                f"{text!r} is not an action: write an operation ({', '.join((*COMPUTE, *OTHER_END))}), "
                "a micro-batch and maybe a chunk, e.g. F3 or B3.1"
            )
        return cls(found[1], int(found[2]), int(found[3] or 0))


class Placement(NamedTuple):
    """Maps each chunk of each rank to its virtual stage: the number of its slice of the model, counted from the input.

    loop, 3 ranks x 2 chunks:  0 1 2      V:  0 1 2
                               3 4 5          5 4 3      (each column a rank)
    """

    ranks: int
    chunks: int = 1
    folded: bool = False  # a V: every other chunk runs from the last rank to the first

    @property
    def stages(self) -> int:
        """The number of virtual stages."""
        return self.ranks * self.chunks

    def virtual_stage(self, rank: int, chunk: int) -> int:
        position = self.ranks - 1 - rank if self._returns(chunk) else rank
        return chunk * self.ranks + position

    def place(self, virtual: int) -> tuple[int, int]:
        """The rank and chunk that hold a virtual stage."""
        chunk, position = divmod(virtual, self.ranks)
        rank = self.ranks - 1 - position if self._returns(chunk) else position
        return rank, chunk

    def other_end(self, rank: int, action: Action) -> tuple[int, Action]:
        """The peer of a transfer of `rank`, and the action at its end."""
        op, step = OTHER_END[action.op]
        virtual = self.virtual_stage(rank, action.chunk)
        peer, chunk = self.place(virtual + step)
        return peer, Action(op, action.microbatch, chunk)

    def goes_down(self, transfer: Action) -> bool:
        """Whether the message goes from a rank to the next one (in a loop also from the last to the first)."""
        carries_output = transfer.op in ("SF", "RF")
        return carries_output != self._returns(transfer.chunk)

    def _returns(self, chunk: int) -> bool:
        return self.folded and chunk % 2 == 1


def gpipe(
    rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> list[Action]:
    """All forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965)."""
    groups = _groups(microbatches, ranks, group)
    return _forwards(groups, chunks) + _backwards(groups, chunks)


def one_f_one_b(
    rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> list[Action]:
    """Each backward runs as early as possible, so that at most `ranks - rank` micro-batches are alive (Narayanan et al.
    2019, PipeDream, SOSP; flushed at the end of the step as in arXiv 2104.04473)."""
    if chunks != 1:
        raise UserError(f"schedule 1f1b has 1 model chunk per rank, not {chunks}: use interleaved")
    forwards = [Action("F", m) for m in range(microbatches)]
    backwards = [Action("B", m) for m in range(microbatches)]
    return _alternate(forwards, backwards, warmup=ranks - rank - 1)


def interleaved(
    rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> list[Action]:
    """1F1B over several chunks per rank, micro-batches in groups of `group` (default `ranks`) per chunk (Narayanan et
    al. 2021, arXiv 2104.04473, section 2.2). Any number of micro-batches.

    Raises:
        UserError: the group is smaller than `ranks`, so that a rank would wait for the last stage.
    """
    if group is not None and group < ranks:
        raise UserError(
            f"micro-batch group ({group}) must be at least the number of stages ({ranks}): use {ranks} or more"
        )
    groups = _groups(microbatches, ranks, group)
    warmup = 2 * (ranks - rank - 1) + (chunks - 1) * len(groups[0])
    return _alternate(_forwards(groups, chunks), _backwards(groups, chunks), warmup)


def forward_only(
    rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> list[Action]:
    """Evaluation: no backward."""
    return _forwards(_groups(microbatches, ranks, group), chunks)


def zb_h1(
    rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> list[Action]:
    """1F1B with its backward in two halves: a rank delays `rank` weight gradients and fills the drain with them. A
    bubble of (p - 1)(F + I - W) at 1F1B's highest memory (Qi et al. 2023, arXiv 2401.10241, figure 2)."""
    _has_chunks("zb_h1", 1, chunks)
    return _halves(microbatches, warmup=ranks - rank - 1, delay=rank)


def zb_h2(
    rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> list[Action]:
    """As H1 with up to 2 p - 1 micro-batches alive on every rank: no bubble between a rank's first and last action when
    F = I = W (arXiv 2401.10241, figure 3)."""
    _has_chunks("zb_h2", 1, chunks)
    return _halves(microbatches, warmup=2 * (ranks - rank - 1), delay=2 * rank)


def zb_v(
    rank: int, ranks: int, microbatches: int, chunks: int = 2, group: int | None = None
) -> list[Action]:
    """Two chunks per rank in a V, so that the loss is back on the first rank: no bubble when F = I = W, at 1F1B's
    memory (arXiv 2401.10241, section 6; Qi et al. 2024, arXiv 2405.15362). Designed for 2 p - 1 micro-batches or
    more; with fewer the same order has gaps."""
    _has_chunks("zb_v", 2, chunks)
    many = max(2 * ranks - 1, microbatches)
    rest = ranks - rank  # this rank and those after it
    full = many - 2 * ranks + 1 + rank  # rounds that start a new micro-batch
    words = []
    # warm-up: forwards, then the first backwards of chunk 1
    words += ["F0"] * (2 * rest - 1)
    words += ["F1", "F0"] * rank
    words += ["F1", "I1", "W1"] * rest
    # steady state: rounds with, then without a new micro-batch
    words += ["F0", "I0", "W0", "F1", "I1", "W1"] * full
    words += ["I0", "W0", "F1", "I1", "W1"] * (many - ranks - full)
    # drain: the last input gradients; weight gradients fill the waits and the end
    words += ["I0", "I1"] * rank
    words += ["I0", "W0"] * rest
    words += ["W1"] * rank
    words += ["W0"] * rank
    return _numbered(words, microbatches)


def dualpipe_v(
    rank: int, ranks: int, microbatches: int, chunks: int = 2, group: int | None = None
) -> list[Action]:
    """One half of DualPipe folded into a V: in the middle a forward of one chunk is next to a backward of the other, so
    that each can hide the communication of the other (DeepSeek-AI 2024, arXiv 2412.19437, section 3.2.1, and its
    DualPipeV). Designed for 2 p micro-batches or more; with fewer the same order has gaps."""
    _has_chunks("dualpipe_v", 2, chunks)
    before = rank + 1  # this rank and those before it
    after = ranks - before
    more = max(microbatches - 2 * ranks, 0)
    words = []
    # warm-up
    words += ["F0"] * (2 * after)
    words += ["F0", "F1"] * before
    words += ["I1", "W", "F1"] * after
    # steady state: a forward of one chunk next to a backward of the other
    words += ["F0", "B1", "F1", "B0"] * (more + before)
    words += ["B1", "F1", "B0"] * after
    # drain: backwards of both chunks in turn, the first half of them whole, and the weight gradients that are left
    for i in range(2 * before):
        op = "B" if i < before else "I"
        chunk = "1" if i % 2 == 0 else "0"
        words.append(op + chunk)
    words += ["W", "I0"] * after
    words += ["W"] * before
    return _numbered(words, microbatches)


Maker = Callable[[int, int, int, int, int | None], list[Action]]


class Schedule(NamedTuple):
    """A row of SCHEDULES: the function that makes the order of a rank, and whether the placement is a V."""

    make: Maker
    folded: bool = False


SCHEDULES: dict[str, Schedule] = {
    "gpipe": Schedule(gpipe),
    "1f1b": Schedule(one_f_one_b),
    "interleaved": Schedule(interleaved),
    "zb_h1": Schedule(zb_h1),
    "zb_h2": Schedule(zb_h2),
    "zb_v": Schedule(zb_v, folded=True),
    "dualpipe_v": Schedule(dualpipe_v, folded=True),
    "forward_only": Schedule(forward_only),
}


def _has_chunks(schedule: str, needed: int, chunks: int) -> None:
    if chunks == needed:
        return
    if needed == 1:
        raise UserError(f"schedule {schedule} has 1 model chunk per rank, not {chunks}: use zb_v")
    raise UserError(
        f"schedule {schedule} has {needed} model chunks per rank, not {chunks}: use {needed}"
    )


def _groups(microbatches: int, ranks: int, group: int | None) -> list[range]:
    """Micro-batches in groups of `group` (default `ranks`). A rest smaller than `ranks` joins the first group: as a
    separate group it could not fill the ring, and the ranks would deadlock."""
    size = min(group or ranks, microbatches)
    rest = microbatches % size
    first = size + rest if rest < ranks else size
    groups = [range(first)]
    for start in range(first, microbatches, size):
        groups.append(range(start, min(start + size, microbatches)))
    return groups


def _forwards(groups: list[range], chunks: int) -> list[Action]:
    """A group runs through all chunks before the next group starts."""
    order = []
    for group in groups:
        for chunk in range(chunks):
            order += [Action("F", m, chunk) for m in group]
    return order


def _backwards(groups: list[range], chunks: int) -> list[Action]:
    """As the forwards, from the last chunk to the first."""
    order = []
    for group in groups:
        for chunk in reversed(range(chunks)):
            order += [Action("B", m, chunk) for m in group]
    return order


def _alternate(forwards: list[Action], backwards: list[Action], warmup: int) -> list[Action]:
    """`warmup` forwards, then one forward and one backward in turn, then the remaining backwards."""
    order = forwards[:warmup]
    for forward, backward in zip(forwards[warmup:], backwards, strict=False):
        order += [forward, backward]
    paired = max(len(forwards) - warmup, 0)
    return order + backwards[paired:]


def _halves(microbatches: int, warmup: int, delay: int) -> list[Action]:
    """`warmup` forwards, then F and I in turn, each followed by the W of `delay` micro-batches earlier."""
    warmup = min(warmup, microbatches)
    order = [Action("F", m) for m in range(warmup)]
    for m in range(microbatches):
        if warmup + m < microbatches:
            order.append(Action("F", warmup + m))
        order.append(Action("I", m))
        if m >= delay:
            order.append(Action("W", m - delay))
    delayed = range(max(microbatches - delay, 0), microbatches)
    return order + [Action("W", m) for m in delayed]


def _numbered(words: list[str], microbatches: int) -> list[Action]:
    """Gives each operation (with its chunk) the next micro-batch of its kind, and drops those past the last one.

    W0 is the oldest weight gradient of chunk 0 that an I has left to compute, W the oldest of all chunks.
    """
    forwards = Counter[str]()
    backwards = Counter[str]()
    left = list[Action]()
    order = list[Action]()
    for word in words:
        op = word[0]
        chunk = word[1:]
        if op == "W":
            action = next(a for a in left if not chunk or a.chunk == int(chunk))
            left.remove(action)
        else:
            seen = forwards if op == "F" else backwards
            action = Action(op, seen[chunk], int(chunk))
            seen[chunk] += 1
            if op == "I":
                left.append(action._replace(op="W"))
        order.append(action)
    return [action for action in order if action.microbatch < microbatches]
