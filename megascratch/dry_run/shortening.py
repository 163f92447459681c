"""A step of many micro-batches repeats itself: a dry run plays a shorter one and counts each of its actions as often as
the long step has such an action.

Actions are alike if they have the same operation and chunk, and both or neither are of the first or of the last
micro-batch. The shorter step is long enough if every situation of the long one occurs in it: what a rank does, and how
far each kind of action is ahead of the others, which says what the rank holds meanwhile. So its memory is fullest with
the same. GPipe, which holds all micro-batches, has no shorter step, and neither has a pipeline over gloo, which holds
all messages.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from megascratch.config.errors import UserError
from megascratch.pipeline.schedule import COMPUTE, OTHER_END, Action

OrderOf = Callable[[int], Sequence[Action]]
"""Number of micro-batches -> the actions of the rank. Raises: UserError for a number that the schedule does not fit."""

# What a micro-batch has behind it after each operation: a whole backward is both of its halves.
_REACHED = {op: (op,) for op in (*COMPUTE, *OTHER_END)} | {"B": ("I", "W")}
_MOST_TRIED = 64  # lengths; schedules that repeat themselves do so after about as many micro-batches as stages


class _Kind(NamedTuple):
    """Actions that are alike."""

    op: str
    chunk: int
    first: bool
    last: bool


class ShortStep(NamedTuple):
    """The step that is run, and how often each of its actions counts."""

    microbatches: int
    times: dict[
        str, int
    ]  # action -> number of actions of the long step that it stands for; 0: another one does


def shortened(order_of: OrderOf, microbatches: int, whole: bool = False) -> ShortStep:
    """The shortest step in which every situation of the step of `microbatches` occurs, if it is less than half of it.

    Args:
        whole: return that step itself.
    """
    long = order_of(microbatches)
    if whole:
        return ShortStep(microbatches, {str(action): 1 for action in long})
    wanted = _situations(long, microbatches)
    least = _most_alive(long)
    for fewer in range(least, min(microbatches // 2, least + _MOST_TRIED)):
        try:
            short = order_of(fewer)
        except UserError:
            continue
        if _situations(short, fewer) >= wanted:
            return ShortStep(fewer, _times(short, fewer, long, microbatches))
    return ShortStep(microbatches, {str(action): 1 for action in long})


def _kind(action: Action, microbatches: int) -> _Kind:
    op, microbatch, chunk = action
    return _Kind(op, chunk, microbatch == 0, microbatch == microbatches - 1)


def _situations(order: Sequence[Action], microbatches: int) -> set[tuple]:
    """Every action with the numbers of micro-batches that have come so far, less the smallest of these numbers."""
    reached = {
        (stage, action.chunk): 0 for action in sorted(order) for stage in _REACHED[action.op]
    }
    found = set()
    for action in order:
        least = min(reached.values())
        ahead = tuple(number - least for number in reached.values())
        found.add((_kind(action, microbatches), ahead))
        for stage in _REACHED[action.op]:
            reached[stage, action.chunk] += 1
    return found


def _most_alive(order: Sequence[Action]) -> int:
    """The most micro-batches of one chunk between their forward and their backward at once."""
    alive: Counter[int] = Counter()
    most = 1
    for action in order:
        if action.op == "F":
            alive[action.chunk] += 1
        elif action.op in ("B", "I"):
            alive[action.chunk] -= 1
        most = max(most, alive[action.chunk])
    return most


def _times(
    short: Sequence[Action], fewer: int, long: Sequence[Action], microbatches: int
) -> dict[str, int]:
    """The first action of each kind in the short step stands for all of its kind in the long one."""
    left = Counter(_kind(action, microbatches) for action in long)
    times = {}
    for action in short:
        times[str(action)] = left.pop(_kind(action, fewer), 0)
    return times
