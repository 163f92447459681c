"""Finds the rank that caused a failure and writes the report, from the status of every rank. Pure text: nothing is read
from the system here.
"""

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
    "did not respond within",
)
"""Parts of error messages that only say that another rank is gone or silent."""

HANGS_AFTER = 2.0
"""Seconds without progress after which a rank that waits for no other rank counts as hung, once other ranks have ended
because of it."""

LOST = -1000
"""Stands for the exit code of a rank that ended without reporting one; only its parent process knows the real code."""


class RankStatus(NamedTuple):
    """One rank as seen from outside."""

    rank: int
    code: int | None  # exit code, negative for a signal; None: it is alive
    state: str  # state of the process, as in /proc: R, S, D, T (stopped) ...; "": unknown
    idle_seconds: float  # since its last progress
    where: Heartbeat | None  # None: it has not written a heartbeat yet

    @property
    def end(self) -> int | None:
        """Its exit code, also if it has only reported the code so far and its process is still exiting; None: it is
        running."""
        if self.code is None and self.where is not None and self.where.ended:
            return self.where.code
        return self.code

    @property
    def failed(self) -> bool:
        """Whether it was ended by a signal, or ended with an error."""
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
    """Whether one of the ranks can be the cause: it ended for a reason of its own, is stopped, or hangs without waiting
    for another rank. Not so if ranks have ended because of another one that still seems to be alive."""
    for one in seen:
        if (one.failed and not _is_echo(one)) or one.stopped or _hangs_by_itself(one):
            return True
    return not any(one.failed for one in seen)


def may_still_report(seen: Sequence[RankStatus]) -> bool:
    """Whether, after a failure, another rank may still report an error of its own: it is at work and may fail soon, or
    it is exiting and may still be printing."""
    if not any(one.failed for one in seen):
        return False
    for one in seen:
        if one.code is not None or one.where is None or one.idle_seconds > HANGS_AFTER:
            continue
        exiting = one.end is not None
        at_work = not one.stopped and not one.where.waits
        if exiting or at_work:
            return True
    return False


def _hangs_by_itself(one: RankStatus) -> bool:
    return one.end is None and one.where is not None and not one.where.waits and one.idle_seconds > HANGS_AFTER


def refused(seen: Sequence[RankStatus]) -> bool:
    """Whether ranks have refused their input, so that a restart would not help. Before the first step one such rank is
    enough; later, no other rank may have failed for another reason. Ranks that are still alive are only slower."""
    if not any(one.end == BAD_INPUT for one in seen):
        return False
    if all(one.where is None or one.where.step == 0 for one in seen):
        return True
    return not any(one.failed and one.end != BAD_INPUT and not _is_echo(one) for one in seen)


def root_causes(seen: Sequence[RankStatus]) -> list[tuple[int, str]]:
    """The ranks that caused the failure, each with what it did. The first kind that matches any rank counts: killed,
    ended with an error of its own, stopped, at work or asleep while others wait, longest in a communication.
    """
    kinds = (
        [(one.rank, _signal(one.end)) for one in seen if one.end is not None and one.end < 0],
        [(one.rank, _end(one)) for one in seen if one.failed and not _is_echo(one)],
        [(one.rank, "is stopped (SIGSTOP)") for one in seen if one.stopped],
        [
            (one.rank, "hangs in its own code, not in a communication")
            for one in _alive(seen)
            if one.where is None or not one.where.waits
        ],
    )
    for causes in kinds:
        if causes:
            return causes
    alive = _alive(seen)
    if not alive:
        return [(one.rank, _end(one)) for one in seen if one.failed]
    longest = max(alive, key=lambda one: one.idle_seconds)
    return [(longest.rank, "has waited longest; every rank waits for another")]


def _alive(seen: Sequence[RankStatus]) -> list[RankStatus]:
    return [one for one in seen if one.end is None]


def _is_echo(one: RankStatus) -> bool:
    """Whether it ended because of another rank."""
    return one.where is not None and any(word in one.where.error for word in ECHOES)


def _signal(code: int) -> str:
    if code == LOST:
        return "died without reporting an exit code (killed, or out of memory)"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _end(one: RankStatus) -> str:
    error = f": {one.where.error}" if one.where is not None and one.where.error else ""
    return f"ended with exit code {one.end}{error}"


def headline(seen: Sequence[RankStatus]) -> str:
    """One sentence: which ranks caused it, what they did, at which step and action."""
    causes = dict(root_causes(seen))
    status_of = {one.rank: one for one in seen}
    parts = [f"rank {rank} {what}, {describe_position(status_of[rank])}" for rank, what in causes.items()]
    return "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more ranks" if len(parts) > 4 else "")


def table(seen: Sequence[RankStatus]) -> list[str]:
    """One line per rank: what it did, what it waited for, how it ended. An arrow marks the ranks that caused it."""
    causes = dict(root_causes(seen))
    return [f"{'->' if one.rank in causes else '  '} rank {one.rank}: {line(one)}" for one in seen]


def describe_position(one: RankStatus) -> str:
    """The step and the action that a rank is at."""
    if one.where is None:
        return "before its first heartbeat"
    if not one.where.step and not one.where.action:
        return "before its first step"
    return f"at step {one.where.step}" + (f", in {one.where.action}" if one.where.action else "")


def line(one: RankStatus) -> str:
    """The row of a rank in the table."""
    words = [describe_position(one)]
    where = one.where
    if where is not None and where.waits:
        words.append(f"waits for {where.awaited}")
    if where is not None and where.background:
        words.append(f"a background thread waits for {where.background}")
    if one.end is None:
        words.append(f"for {one.idle_seconds:.1f} s{'; stopped' if one.stopped else ''}")
    elif one.end:
        words.append(_signal(one.end) if one.end < 0 else _end(one))
    else:
        words.append("ended with exit code 0")
    return ", ".join(words)
