"""A function and a number of ranks in, the exit code of the whole run out: starts, watches, ends, starts again.

    launcher --watches--> {folder}/{rank}.rank      every rank notes there what it does (runtime.heartbeat)
        |                                           a rank that dies, or stands still longer than the limit, ends the
    fork server (has the libraries loaded)          attempt: a report, SIGKILL for the others, and all start again
        |--> rank 0  |--> rank 1  ...

Ranks are forked from a process that has loaded everything and done nothing, so a new start costs tenths of a second,
not the import of torch once per rank. They end with the fork server, and it ends with the launcher (fork_server.py).
"""

import contextlib
import multiprocessing as mp
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from megascratch.config.exit_codes import BAD_INPUT, FAILED, STOPS, is_own_process
from megascratch.runtime.heartbeat import FOLDER, STORE
from megascratch.supervision import fork_server
from megascratch.supervision.folders import new_folder
from megascratch.supervision.observe import (
    LOOK_EVERY,
    answer_stack_requests,
    is_hung,
    kill,
    log,
    observe,
    report,
    wait_for_other_ranks,
)
from megascratch.supervision.report import RankStatus, refused

SAME_SIGNAL = 1.0  # seconds in which a signal that comes again, over another way, is the same request
GRACE = 3.0  # seconds from the second request to SIGKILL
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
BEGAN = "MEGASCRATCH_BEGAN"
"""time.time() when the first attempt of this run began; attempts that follow inherit it."""

UNKNOWN = 255
"""What multiprocessing calls the exit code of a process whose fork server is gone."""

RankErrors = tuple[tuple[int, str], ...]
"""Step and error of each rank."""


@dataclass(frozen=True)
class LaunchConfig:
    """What is started, and what is done when it fails."""

    target: Callable[[], int]  # of a module, without closure; it unblocks FORWARDED when it can heed them
    ranks: int
    max_restarts: int
    limit: float  # seconds without any progress that make a hang
    reports: Path  # folder
    preload: tuple[str, ...] = ()


def launch(plan: LaunchConfig) -> int:
    """0 when all ranks are done, the code of `config.exit_codes` when they have saved and stopped, 2 for bad input, 1
    when the restarts are used up, 128 + signal number after a second request to stop."""
    return _Launcher(plan).run()


@dataclass
class Requests:
    """Signals that came, each with its time; a repetition within SAME_SIGNAL is left out."""

    came: list[tuple[int, float]] = field(default_factory=list)
    handled: int = 0

    def add(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not any(number == other and now - when < SAME_SIGNAL for other, when in self.came):
            self.came.append((number, now))

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        heard = set(FORWARDED)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            heard.remove(signal.SIGHUP)  # nohup asked for it
        before = {number: signal.signal(number, self.add) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if is_own_process() else handler)


class _Launcher:
    def __init__(self, plan: LaunchConfig):
        self.plan, self.requests, self.began = plan, Requests(), str(time.time())
        if plan.ranks > 1:
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: ranks share the cores
        self.context = mp.get_context("forkserver")

    def run(self) -> int:
        with self.requests.caught():
            before: RankErrors | None = None
            for number in range(self.plan.max_restarts + 1):
                fork_server.start(self.plan.preload, FORWARDED)
                attempt = _Attempt(self, number)
                code, again = attempt.run()
                if not again or self.requests.came or number == self.plan.max_restarts:
                    break
                if attempt.errors is not None and attempt.errors == before:
                    log("every rank has ended twice with the same words at the same step: it would a third time")
                    break
                before = attempt.errors
                left = self.plan.max_restarts - number - 1
                log(f"starting again ({left} more restart{'s' if left != 1 else ''} allowed)")
        return code


class _ForkServerDied(Exception):
    pass


class _Attempt:
    """All ranks from one start to their ends."""

    def __init__(self, launcher: _Launcher, number: int):
        self.plan, self.requests, self.context = launcher.plan, launcher.requests, launcher.context
        self.number, self.began = number, launcher.began
        self.folder = new_folder("ranks")
        self.processes: list[Any] = []
        self.errors: RankErrors | None = None
        self.kill_at = float("inf")

    def run(self) -> tuple[int, bool]:
        """The exit code, and whether a new start may mend it."""
        try:
            try:
                self._start()
                failure = self._watch()
            except _ForkServerDied:
                log("the fork server was killed, and all ranks ended with it")
                return FAILED, True
            self.errors = self._errors_of_all()
            return self._outcome(failure)
        finally:
            kill([process.pid for process in self.processes if process.exitcode in (None, UNKNOWN)])
            for process in self.processes:
                process.join()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        for rank in range(self.plan.ranks):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
                "WORLD_SIZE": str(self.plan.ranks),
                "LOCAL_WORLD_SIZE": str(self.plan.ranks),
                STORE: str(self.folder / "store"),
                FOLDER: str(self.folder),
                BEGAN: self.began,
                "TORCHELASTIC_RESTART_COUNT": str(self.number),
            }
            process = self.context.Process(target=_run_rank, args=(self.plan.target, environment), daemon=True)
            try:
                process.start()
            except (OSError, EOFError) as error:
                if not fork_server.has_died():
                    raise
                raise _ForkServerDied from error
            self.processes.append(process)

    def _watch(self) -> list[RankStatus] | None:
        """Until all ranks have ended: None, or as they were seen when one failed."""
        while True:
            self._pause(LOOK_EVERY)
            self._forward_signals()
            codes = self._codes()
            if UNKNOWN in codes.values() and fork_server.has_died():
                raise _ForkServerDied
            if None not in codes.values() and len(set(codes.values())) == 1:
                return None
            bad = next((code for code in codes.values() if code is not None and code not in (0, *STOPS)), None)
            if bad is not None:
                return self._failed("an attempt ends with its first rank")
            if is_hung(self.folder, codes, self.plan.limit):
                return self._failed(f"no progress for {self.plan.limit:g} s")
            if None not in codes.values():
                return observe(self.folder, codes)

    def _pause(self, seconds: float) -> None:
        """Shorter if a rank ends."""
        wait([process.sentinel for process in self.processes if process.exitcode is None], seconds)

    def _failed(self, reason: str) -> list[RankStatus]:
        """Gives the others a moment to say why they end, reports, and leaves the rest to be ended."""
        wait_for_other_ranks(self.folder, self._codes, self._pause)
        seen = observe(self.folder, self._codes())
        if not refused(seen) and len(self.requests.came) < 2:
            log(report(seen, self.folder, self.plan.reports / f"attempt_{self.number}.txt", reason))
        return seen

    def _errors_of_all(self) -> RankErrors | None:
        """Where every rank ended by itself and said why; None where one was ended or is still there."""
        seen = observe(self.folder, self._codes())
        told = tuple((one.where.step, one.where.error) for one in seen if one.where is not None and one.where.ended)
        return told if len(told) == len(seen) and all(one.end == FAILED for one in seen) else None

    def _outcome(self, seen: list[RankStatus] | None) -> tuple[int, bool]:
        if len(self.requests.came) > 1:
            return 128 + self.requests.came[1][0], False
        if seen is None:
            code = self.processes[0].exitcode
            return (FAILED if code < 0 else code), code not in (0, BAD_INPUT, *STOPS)
        if refused(seen):
            return BAD_INPUT, False
        return FAILED, True

    def _codes(self) -> dict[int, int | None]:
        return {rank: process.exitcode for rank, process in enumerate(self.processes)}

    def _forward_signals(self) -> None:
        pids = [process.pid for process in self.processes if process.exitcode is None]
        for number, _ in self.requests.came[self.requests.handled :]:
            self.requests.handled += 1
            if self.requests.handled == 2:
                self.kill_at = time.monotonic() + GRACE
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        if time.monotonic() > self.kill_at:
            kill(pids)


def _run_rank(target: Callable[[], int], environment: dict[str, str]) -> None:
    """In the new process. Requests stay blocked, as in the fork server, until the target is ready to hear them."""
    os.setsid()  # signals of the terminal go to the launcher, which passes them on once
    fork_server.end_with_fork_server()
    os.environ.clear()  # the fork server's is older
    os.environ.update(environment)
    answer_stack_requests()
    sys.exit(target())


def began() -> float:
    """time.time() when this run began; of a process that nobody started, or an unreadable word: now."""
    try:
        return float(os.environ[BEGAN])
    except (KeyError, ValueError):
        return time.time()
