"""(rank, ranks, micro-batches, chunks) in, the list of actions of that rank out: when each forward and backward runs.

An `Action` is an operation on one micro-batch and one model chunk; it prints and parses as `F3`, `B3.1`, `W3`.

    F  forward              B  backward (input and weights at once)
    I  input gradient       W  weight gradient (after I)
    SF RF  send / receive the output of a forward        SB RB  send / receive the gradient of an input

A rank's chunks are dealt in a loop: virtual stage v = chunk * ranks + rank. A transfer carries the chunk of the rank
that runs it: SF3.0 on the last rank arrives as RF3.1 on the first.

In every schedule a chunk runs its backwards in the order of the micro-batches, so that gradients add up in one order
and all schedules agree to the last bit. A new schedule is one more function and one more row of `SCHEDULES`.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from megascratch.config.errors import UserError

COMPUTE = ("F", "B", "I", "W")
# Each transfer's other end: its operation there, and how many virtual stages away.
OTHER_END = {"SF": ("RF", 1), "RF": ("SF", -1), "SB": ("RB", -1), "RB": ("SB", 1)}
_PATTERN = re.compile(rf"({'|'.join((*COMPUTE, *OTHER_END))})(\d+)(?:\.(\d+))?")


class Action(NamedTuple):
    """One step of one rank."""

    op: str
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.op}{self.microbatch}" + (f".{self.chunk}" if self.chunk else "")

    @classmethod
    def parse(cls, text: str) -> "Action":
        """The action that prints as `text`; ValueError if there is none."""
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no action: write an operation ({', '.join((*COMPUTE, *OTHER_END))}), "
                             "a micro-batch and maybe a chunk, e.g. F3 or B3.1")
        return cls(found[1], int(found[2]), int(found[3] or 0))


def virtual_stage(rank: int, ranks: int, chunk: int) -> int:
    """Which slice of the model, counted from its input, `chunk` of `rank` is."""
    return chunk * ranks + rank


def place(virtual: int, ranks: int) -> tuple[int, int]:
    """The rank and chunk that hold a virtual stage."""
    return virtual % ranks, virtual // ranks


def other_end(rank: int, action: Action, ranks: int) -> tuple[int, Action]:
    """The rank and action that `action`, a transfer of `rank`, meets."""
    op, step = OTHER_END[action.op]
    peer, chunk = place(virtual_stage(rank, ranks, action.chunk) + step, ranks)
    return peer, Action(op, action.microbatch, chunk)


def gpipe(rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None) -> list[Action]:
    """All forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965)."""
    turns = _turns(_groups(microbatches, ranks, group), chunks)
    return [Action("F", m, c) for m, c in turns] + [Action("B", m, chunks - 1 - c) for m, c in turns]


def one_f_one_b(rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None) -> list[Action]:
    """Each backward as early as it can be, so that at most `ranks - rank` micro-batches are alive (Narayanan et al.
    2019, PipeDream, SOSP; flushed at the end of the step as in arXiv 2104.04473)."""
    if chunks != 1:
        raise UserError(f"schedule 1f1b has 1 model chunk per rank, not {chunks}: use interleaved")
    forwards = [Action("F", m) for m in range(microbatches)]
    return _alternate(forwards, [Action("B", m) for m in range(microbatches)], ranks - rank - 1)


def interleaved(rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None) -> list[Action]:
    """1F1B over several chunks per rank, micro-batches in groups of `group` (default `ranks`) per chunk (Narayanan et
    al. 2021, arXiv 2104.04473, section 2.2). Any number of micro-batches.

    Raises:
        UserError: the group is smaller than `ranks`: its first micro-batch would be awaited from the last stage.
    """
    if group is not None and group < ranks:
        raise UserError(f"micro-batch group ({group}) must be at least the number of stages ({ranks}): "
                        f"use {ranks} or more")
    groups = _groups(microbatches, ranks, group)
    turns = _turns(groups, chunks)
    forwards = [Action("F", m, c) for m, c in turns]
    backwards = [Action("B", m, chunks - 1 - c) for m, c in turns]
    return _alternate(forwards, backwards, 2 * (ranks - rank - 1) + (chunks - 1) * len(groups[0]))


def forward_only(rank: int, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None) -> list[Action]:
    """Evaluation: no backward."""
    return [Action("F", m, c) for m, c in _turns(_groups(microbatches, ranks, group), chunks)]


Schedule = Callable[[int, int, int, int, int | None], list[Action]]
SCHEDULES: dict[str, Schedule] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "forward_only": forward_only,
}


def _groups(microbatches: int, ranks: int, group: int | None) -> list[range]:
    """Micro-batches in groups of `group` (default `ranks`). A rest smaller than `ranks` joins the first group: as a
    group of its own it could not fill the ring, and ranks would wait for each other in a circle."""
    size = min(group or ranks, microbatches)
    rest = microbatches % size
    starts = [0, *range(size + rest if rest < ranks else size, microbatches, size)]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], microbatches], strict=True)]


def _turns(groups: list[range], chunks: int) -> list[tuple[int, int]]:
    """(micro-batch, chunk): a group runs through all chunks before the next group starts."""
    return [(m, c) for group in groups for c in range(chunks) for m in group]


def _alternate(forwards: list[Action], backwards: list[Action], warmup: int) -> list[Action]:
    """`warmup` forwards, then one forward and one backward in turn, then the backwards that are left."""
    order = forwards[:warmup]
    for forward, backward in zip(forwards[warmup:], backwards, strict=False):
        order += [forward, backward]
    return order + backwards[max(len(forwards) - warmup, 0):]
