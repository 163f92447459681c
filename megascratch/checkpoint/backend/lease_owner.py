"""Decides whether the owner of a checkpoint lease is still alive, on a disk and in an object store alike.

An owner counts as gone when its process has ended (same machine), when it belongs to the same run of the launcher (a
restart: torchrun ends the old processes first), or when its heartbeat counter has not changed for a while. The claimant
measures this time with its own clock, so the clocks of two machines are never compared.
"""

import json
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

from megascratch.config.errors import UserError
from megascratch.config.json_record import COUNT, TEXT, misfit, parse_json
from megascratch.config.printable import printable
from megascratch.runtime.processes import start_of
from megascratch.storage.path import Place

SAVE_ELSEWHERE = "save elsewhere (--save)"
_FIELDS = {"host": TEXT, "pid": COUNT, "started": TEXT, "run": TEXT, "since": TEXT, "claim": TEXT}


@dataclass(frozen=True)
class LeaseOwner:
    """The process that owns a lease: named in messages, and recognised by a restart of the same run."""

    host: str
    pid: int
    started: str  # start time of the process in kernel ticks: a pid can be reused, a pid with its start time cannot
    run: str  # run id of the launcher; '' if it has none
    since: str
    claim: str = ""  # makes the record of each claim unique

    @classmethod
    def this_process(cls) -> "LeaseOwner":
        return cls(
            socket.gethostname(),
            os.getpid(),
            start_of(os.getpid()),
            _run(),
            time.strftime("%F %T %Z"),
            uuid.uuid4().hex,
        )

    @classmethod
    def from_text(cls, text: str | bytes) -> "LeaseOwner | None":
        """None if the text is not a valid record."""
        try:
            record = parse_json(text)
            return cls(**record) if misfit(record, _FIELDS) is None else None
        except (ValueError, TypeError):
            return None

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        run = f" (run {self.run})" if self.run else ""
        return printable(f"process {self.pid} on {self.host} since {self.since}{run}")


def require_gone(
    folder: Place,
    holder: LeaseOwner | None,
    me: LeaseOwner,
    beat: Callable[[], str | None],
    every: float,
    stale: float,
    elsewhere: str = SAVE_ELSEWHERE,
) -> None:
    """Returns when the owner counts as gone. Raises: UserError if it is alive.

    Args:
        holder: the record of the owner; None if there is none.
        beat: reads the owner's heartbeat counter; None if its record was deleted.
        every: seconds between two heartbeats.
        stale: after so many seconds without a new heartbeat the owner counts as gone.
        elsewhere: what the user can do instead of waiting, for the message.
    """
    if holder is None or _has_ended(holder, me):
        return
    before = beat()
    ends = time.monotonic() + stale
    warned = False
    while time.monotonic() < ends:
        time.sleep(every / 2)
        now = beat()
        if now is None or _has_ended(holder, me):  # it ended while this process waited
            return
        if now != before:
            raise UserError(
                f"{folder} is being written by {holder}: end that run first, or {elsewhere}"
            )
        if not warned and time.monotonic() > ends - stale + 4 * every:
            warnings.warn(
                f"{holder} owns {printable(folder)} but sends no heartbeat: this run takes over in {stale:.0f} s "
                "unless it sends one",
                stacklevel=2,
            )
            warned = True


def _has_ended(holder: LeaseOwner, me: LeaseOwner) -> bool:
    if holder.host == me.host and start_of(holder.pid) != holder.started:
        return True
    return (
        bool(holder.run) and holder.run == me.run and (holder.host, holder.pid) != (me.host, me.pid)
    )


def _run() -> str:
    """The run id that torchrun gives to a run and to its restarts; '' if there is none."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if run == "none" else run
