"""Who holds a folder in, whether that holder counts as gone out; the same for a folder on a disk and one in a store.

A holder counts as gone when its process has ended (same machine), when it belongs to the same run of the launcher (a
restart: torchrun ends the old processes first), or when its counter has stood still for a while as the claimant's own
clock measures it: no two machines' clocks are compared.
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
    """Who writes, for a message to people and for a restart to know itself."""

    host: str
    pid: int
    started: str  # of the process, in the kernel's ticks: a number is used again, a number with its start is not
    run: str  # of the launcher; '' where it has no name
    since: str
    claim: str = ""  # makes the record of each claim another one

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
        """None where it is no record."""
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
    """Raises: UserError where the holder is alive; returns when it counts as gone.

    Args:
        beat: its counter; None: its record has gone.
        every: seconds between two beats; stale: for so many a counter stands still when its holder is gone.
        elsewhere: what a user can do instead of waiting.
    """
    if holder is None or _has_ended(holder, me):
        return
    before, ends, said = beat(), time.monotonic() + stale, False
    while time.monotonic() < ends:
        time.sleep(every / 2)
        now = beat()
        if now is None or _has_ended(holder, me):  # it may be ending just now
            return
        if now != before:
            raise UserError(f"{folder} is being written by {holder}: end that run first, or {elsewhere}")
        if not said and time.monotonic() > ends - stale + 4 * every:
            warnings.warn(
                f"{holder} holds {printable(folder)} and gives no sign of life: taken over in {stale:.0f} s "
                "unless it does",
                stacklevel=2,
            )
            said = True


def _has_ended(holder: LeaseOwner, me: LeaseOwner) -> bool:
    if holder.host == me.host and start_of(holder.pid) != holder.started:
        return True
    return bool(holder.run) and holder.run == me.run and (holder.host, holder.pid) != (me.host, me.pid)


def _run() -> str:
    """The launcher's name of this run, which its restarts share."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if run == "none" else run
