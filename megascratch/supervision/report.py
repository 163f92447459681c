"""Finds the rank that caused a failure and writes the report, from the status of every rank. Pure text: nothing is read
from the system here.
"""

import signal
from collections.abc import Sequence
from typing import NamedTuple

import psutil

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

MOST_LISTED = 4  # ranks in the headline

LOST = -1000
"""Stands for the exit code of a rank that ended without reporting one; only its parent process knows the real code."""


class RankStatus(NamedTuple):
    """One rank as seen from outside."""

    rank: int
    code: int | None  # exit code, negative for a signal; None: it is alive
    state: str  # state of the process, one of psutil.STATUS_*; "": unknown
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
        return self.end is None and self.state in (
            psutil.STATUS_STOPPED,
            psutil.STATUS_TRACING_STOP,
        )


def hung_for(seen: Sequence[RankStatus], limit: float) -> float:
    """Seconds that a rank which others wait for was allowed to take and has taken without a change; 0 if none hangs.

    Args:
        limit: how many it may take, if its heartbeat does not say otherwise.
    """
    for one in seen:
        if one.code is None and one.where is not None and one.where.watched:
            allowed = one.where.patience or limit
            if one.idle_seconds > allowed:
                return allowed
    return 0.0


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
    return (
        one.end is None
        and one.where is not None
        and not one.where.waits
        and one.idle_seconds > HANGS_AFTER
    )


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
    killed = [(one.rank, _signal(one.end)) for one in seen if one.end is not None and one.end < 0]
    if killed:
        return killed
    failed = [(one.rank, _end(one)) for one in seen if one.failed and not _is_echo(one)]
    if failed:
        return failed
    stopped = [(one.rank, "is stopped (SIGSTOP)") for one in seen if one.stopped]
    if stopped:
        return stopped
    alive = [one for one in seen if one.end is None]
    hung = [one.rank for one in alive if one.where is None or not one.where.waits]
    if hung:
        return [(rank, "hangs in its own code, not in a communication") for rank in hung]
    if not alive:
        return [(one.rank, _end(one)) for one in seen if one.failed]
    longest = max(alive, key=lambda one: one.idle_seconds)
    return [(longest.rank, "has waited longest; every rank waits for another")]


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
    status_of = {one.rank: one for one in seen}
    parts = []
    for rank, what in root_causes(seen):
        parts.append(f"rank {rank} {what}, {describe_position(status_of[rank])}")
    text = "; ".join(parts[:MOST_LISTED])
    if len(parts) > MOST_LISTED:
        text += f"; and {len(parts) - MOST_LISTED} more ranks"
    return text


def table(seen: Sequence[RankStatus]) -> list[str]:
    """One line per rank: what it did, what it waited for, how it ended. An arrow marks the ranks that caused it."""
    causes = dict(root_causes(seen))
    lines = []
    for one in seen:
        arrow = "->" if one.rank in causes else "  "
        lines.append(f"{arrow} rank {one.rank}: {line(one)}")
    return lines


def describe_position(one: RankStatus) -> str:
    """The step and the action that a rank is at."""
    if one.where is None:
        return "before its first heartbeat"
    if not one.where.step and not one.where.action:
        return "before its first step"
    action = f", in {one.where.action}" if one.where.action else ""
    return f"at step {one.where.step}{action}"


def line(one: RankStatus) -> str:
    """The row of a rank in the table."""
    words = [describe_position(one)]
    where = one.where
    if where is not None and where.waits:
        words.append(f"waits for {where.waits_for}")
    if where is not None and where.background:
        words.append(f"a background thread waits for {where.background}")
    if one.end is None:
        stopped = "; stopped" if one.stopped else ""
        words.append(f"for {one.idle_seconds:.1f} s{stopped}")
    elif one.end < 0:
        words.append(_signal(one.end))
    elif one.end > 0:
        words.append(_end(one))
    else:
        words.append("ended with exit code 0")
    return ", ".join(words)
