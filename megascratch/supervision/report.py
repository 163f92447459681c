"""What was seen of each rank in, who is to blame and a report out; nothing is looked up here."""

import signal
from collections.abc import Sequence
from typing import NamedTuple

from megascratch.config.exit_codes import BAD_INPUT
from megascratch.runtime.heartbeat import Heartbeat

ECHOES = (
    "closed by peer",
    "another rank has ended",
    "Connection reset",
    "reset by peer",
    "timed out",
    "Timed out",
    "no link from rank",
    "did not come within",
)
"""Words of an error that only says that some other rank is gone or silent."""


HANGS_AFTER = 2.0
"""Seconds after which a rank that waits for nobody counts as standing still, once others have ended because of it."""

LOST = -1000
"""The exit code of a rank that ended without a word, where its parent alone knows more."""


class RankStatus(NamedTuple):
    """One rank from outside."""

    rank: int
    code: int | None  # its exit code, negative for a signal; None: it lives
    state: str  # of the process, as in /proc: R, S, D, T (stopped) ...; "": unknown
    idle_seconds: float  # since its last progress
    where: Heartbeat | None  # None: it has said nothing yet

    @property
    def end(self) -> int | None:
        """Its exit code, also where it has only said it so far and its process is still on the way out; None: it goes
        on."""
        if self.code is None and self.where is not None and self.where.ended:
            return self.where.code
        return self.code

    @property
    def failed(self) -> bool:
        """Ended by a signal, or with an error."""
        return self.end is not None and self.end != 0

    @property
    def stopped(self) -> bool:
        return self.end is None and self.state in ("T", "t")


def any_hung(seen: Sequence[RankStatus], limit: float) -> bool:
    """Whether a rank that others wait for has not moved for `limit` seconds."""
    return any(
        one.code is None and one.where is not None and one.where.watched and one.idle_seconds > limit for one in seen
    )


def cause_is_known(seen: Sequence[RankStatus]) -> bool:
    """Whether a rank is seen that can have begun it: it has ended for a reason of its own, is stopped, or stands still
    while it waits for nobody. It is not known where ranks have ended because of another one that seems to live."""
    began = [one for one in seen if (one.failed and not _is_echo(one)) or one.stopped or _hangs_by_itself(one)]
    return bool(began) or not any(one.failed for one in seen)


def may_still_report(seen: Sequence[RankStatus]) -> bool:
    """Whether after a failure a rank is at work, so that it may soon end with words of its own, or is on the way out
    and may still be printing them."""
    if not any(one.failed for one in seen):
        return False
    moving = [one for one in seen if one.code is None and one.where is not None and one.idle_seconds <= HANGS_AFTER]
    return any(one.end is not None or not (one.stopped or one.where.waits) for one in moving if one.where is not None)


def _hangs_by_itself(one: RankStatus) -> bool:
    return one.end is None and one.where is not None and not one.where.waits and one.idle_seconds > HANGS_AFTER


def refused(seen: Sequence[RankStatus]) -> bool:
    """Whether ranks have refused their input, so that no new start mends it: one before any step; later, one while no
    other failed for another reason. Ranks that still live are slower, that is all."""
    if not any(one.end == BAD_INPUT for one in seen):
        return False
    if all(one.where is None or one.where.step == 0 for one in seen):
        return True
    return not any(one.failed and one.end != BAD_INPUT and not _is_echo(one) for one in seen)


def root_causes(seen: Sequence[RankStatus]) -> list[tuple[int, str]]:
    """The ranks that began it, each with what it did; the first kind that fits anyone:
    killed, ended with an error of its own, stopped, at work or asleep while others wait, longest in a communication.
    """
    kinds = (
        [(one.rank, _signal(one.end)) for one in seen if one.end is not None and one.end < 0],
        [(one.rank, _end(one)) for one in seen if one.failed and not _is_echo(one)],
        [(one.rank, "is stopped (SIGSTOP)") for one in seen if one.stopped],
        [
            (one.rank, "hangs in its own code, in no communication")
            for one in _alive(seen)
            if one.where is None or not one.where.waits
        ],
    )
    for found in kinds:
        if found:
            return found
    alive = _alive(seen)
    if not alive:
        return [(one.rank, _end(one)) for one in seen if one.failed]
    longest = max(alive, key=lambda one: one.idle_seconds)
    return [(longest.rank, "has waited longest; all wait, each for others")]


def _alive(seen: Sequence[RankStatus]) -> list[RankStatus]:
    return [one for one in seen if one.end is None]


def _is_echo(one: RankStatus) -> bool:
    """It ended because of another rank."""
    return one.where is not None and any(word in one.where.error for word in ECHOES)


def _signal(code: int) -> str:
    if code == LOST:
        return "died without a word (killed, or out of memory)"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _end(one: RankStatus) -> str:
    told = f": {one.where.error}" if one.where is not None and one.where.error else ""
    return f"ended with exit code {one.end}{told}"


def headline(seen: Sequence[RankStatus]) -> str:
    """One sentence: who, what, where."""
    named = dict(root_causes(seen))
    whole = {one.rank: one for one in seen}
    parts = [f"rank {rank} {what}, {describe_position(whole[rank])}" for rank, what in named.items()]
    return "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more ranks" if len(parts) > 4 else "")


def table(seen: Sequence[RankStatus]) -> list[str]:
    """One line per rank: what it did, what it waited for, how it ended."""
    to_blame = dict(root_causes(seen))
    return [f"{'->' if one.rank in to_blame else '  '} rank {one.rank}: {line(one)}" for one in seen]


def describe_position(one: RankStatus) -> str:
    """Step and action."""
    if one.where is None:
        return "before it said anything"
    if not one.where.step and not one.where.action:
        return "before its first step"
    return f"at step {one.where.step}" + (f", in {one.where.action}" if one.where.action else "")


def line(one: RankStatus) -> str:
    """A rank's row of the table."""
    words = [describe_position(one)]
    where = one.where
    if where is not None and where.waits:
        words.append(f"waits for {where.awaited}")
    if where is not None and where.background:
        words.append(f"in the background waits for {where.background}")
    if one.end is None:
        words.append(f"since {one.idle_seconds:.1f} s{'; stopped' if one.stopped else ''}")
    elif one.end:
        words.append(_signal(one.end) if one.end < 0 else _end(one))
    else:
        words.append("ended well")
    return ", ".join(words)
