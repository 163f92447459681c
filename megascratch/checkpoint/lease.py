"""Two runs that want to save into one folder in, one writer out: a lease with a fencing number, checked by the rename.

    {folder}/.writer.00000007/holder.json    who: host, process, when, the launcher's run
    {folder}/.writer.00000007/beat           a counter that the holder's thread raises every BEAT_SECONDS
    {folder}/.writer.00000007/.step_*.partial    the steps that it is writing

A step is committed by renaming it out of its writer's folder. Whoever takes over renames that folder away first, so a
writer that was stopped and wakes up late has nothing left to rename: the check and the commit are one system call.
The next number is claimed by renaming a prepared folder to its name, which succeeds for one claimant only, since a
folder that is not empty is never replaced.

A holder counts as gone when its process has ended (same machine), when it belongs to the same run of the launcher (a
restart: torchrun ends the old processes first), or when its counter has stood still for STALE_SECONDS as the claimant's
own clock measures them: no two machines' clocks are compared.
"""

import json
import os
import shutil
import socket
import threading
import time
import uuid
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from megascratch.checkpoint.errors import LeaseLostError
from megascratch.checkpoint.local import sync
from megascratch.config.errors import UserError

BEAT_SECONDS = 0.5
STALE_SECONDS = 20.0
PREFIX, AWAY = ".writer.", ".writer-away."


@dataclass(frozen=True)
class Holder:
    """Who writes, for a message to people and for a restart to know itself."""

    host: str
    pid: int
    started: str  # of the process, in the kernel's ticks: a number is used again, a number with its start is not
    run: str  # of the launcher; '' where it has no name
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()), _run(), time.strftime("%F %T %Z"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" + (f" (run {self.run})" if self.run else "")


class Lease:
    """The right to write into a folder, until `release` or until somebody takes it over."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        self.inside = folder / f"{PREFIX}{number:08d}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: str | Path) -> "Lease":
        """Claims the folder, which is made if it is not there. The remains of a writer that is gone are deleted.

        Raises: UserError, naming the holder, where another writer is alive; OSError where the folder cannot be made.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        me = Holder.this_process()
        while True:
            numbers = _numbers(folder)
            for number in numbers:
                _require_gone(folder, number, me)
                _take_away(folder, number)
            number = max([0, *numbers, *_numbers(folder, AWAY)]) + 1
            if not _claim(folder, number, me):
                continue
            if max(_numbers(folder)) > number:  # another claimant saw the folder while it changed hands
                _take_away(folder, number)
                continue
            _clean(folder)
            return cls(folder, number)

    def require(self) -> None:
        """Raises: LeaseLostError where somebody has taken over."""
        if not self.inside.exists():
            raise LeaseLostError(f"another writer has taken {self.folder} over: {_newest_holder(self.folder)}")

    def release(self) -> None:
        """Others may claim the folder at once."""
        self._over.set()
        self._thread.join()
        _take_away(self.folder, self.number)

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError):  # a full disk must not end the thread; a folder taken away does not come back
                (self.inside / "beat").write_text(str(count))


def _numbers(folder: Path, prefix: str = PREFIX) -> list[int]:
    names = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    return sorted(int(name) for name in names if name.isdigit())


def _claim(folder: Path, number: int, me: Holder) -> bool:
    prepared = folder / f".writer-new.{uuid.uuid4().hex[:12]}"
    prepared.mkdir()
    try:
        (prepared / "holder.json").write_text(json.dumps(asdict(me)))
        (prepared / "beat").write_text("0")
        os.rename(prepared, folder / f"{PREFIX}{number:08d}")
        sync(folder)
    except OSError:
        shutil.rmtree(prepared, ignore_errors=True)
        if (folder / f"{PREFIX}{number:08d}").exists():
            return False
        raise
    return True


def _take_away(folder: Path, number: int) -> None:
    """Moves a writer's folder away, which fences it, and deletes what was in it; its number stays used."""
    away = folder / f"{AWAY}{number:08d}"
    with suppress(OSError):
        os.rename(folder / f"{PREFIX}{number:08d}", away)
    _empty(away)


def _empty(folder: Path) -> None:
    for path in folder.glob("*") if folder.exists() else ():
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _clean(folder: Path) -> None:
    """Deletes what earlier writers left; the number just claimed is above all of theirs."""
    for path in (*folder.glob(f"{AWAY}*"), *folder.glob(".*.deleting")):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".writer-new.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _require_gone(folder: Path, number: int, me: Holder) -> None:
    """Raises: UserError where the holder is alive; returns when it counts as gone."""
    inside = folder / f"{PREFIX}{number:08d}"
    holder = _holder(inside)
    if holder is None:
        return
    here = holder.host == me.host
    if here and _start_of(holder.pid) != holder.started:
        return
    if holder.run and holder.run == me.run and (holder.host, holder.pid) != (me.host, me.pid):
        return
    before, ends, said = _beat_of(inside), time.monotonic() + STALE_SECONDS, False
    while time.monotonic() < ends:
        time.sleep(BEAT_SECONDS / 2)
        now = _beat_of(inside)
        if now is None:
            return
        if now != before:
            raise UserError(f"{folder} is being written by {holder}: end that run first, or save elsewhere (--save)")
        if not said and time.monotonic() > ends - STALE_SECONDS + 4 * BEAT_SECONDS:
            warnings.warn(f"{holder} holds {folder} and gives no sign of life: taken over in {STALE_SECONDS:.0f} s "
                          "unless it does", stacklevel=2)
            said = True


def _holder(inside: Path) -> Holder | None:
    """None where the folder has gone, or its record is none."""
    try:
        return Holder(**json.loads((inside / "holder.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _newest_holder(folder: Path) -> str:
    numbers = _numbers(folder)
    holder = _holder(folder / f"{PREFIX}{numbers[-1]:08d}") if numbers else None
    return str(holder) if holder else "it has ended since"


def _beat_of(inside: Path) -> str | None:
    try:
        return (inside / "beat").read_text()
    except OSError:
        return None


def _start_of(pid: int) -> str:
    """When a process of this machine started, '' where there is none or the system does not tell; a zombie is gone."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return "ended"
        return "" if not Path("/proc").exists() else "ended"
    return "ended" if state == "Z" else rest[18]


def _run() -> str:
    """The launcher's name of this run, which its restarts share."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if run == "none" else run
