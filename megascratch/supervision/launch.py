"""The launcher for one machine: starts the ranks, watches them, restarts all of them when one dies or hangs, and
returns the exit code of the run.

    launcher --watches--> {folder}/{rank}.rank      the heartbeat file of each rank (runtime.heartbeat)
        |                                           a rank that dies, or hangs longer than the limit, ends the attempt:
    fork server (has the libraries loaded)          a report, SIGKILL for the other ranks, and all are restarted
        |--> rank 0  |--> rank 1  ...

Ranks are forked from a process that has loaded every library and done nothing else, so a restart costs tenths of a
second instead of an import of torch per rank. They end with the fork server, which ends with the launcher
(fork_server.py).
"""

import contextlib
import multiprocessing as mp
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from megascratch.config.exit_codes import BAD_INPUT, DONE, FAILED, STOPS, is_own_process
from megascratch.runtime.heartbeat import FOLDER, STORE
from megascratch.supervision import fork_server
from megascratch.supervision.folders import new_folder
from megascratch.supervision.observe import (
    LOOK_EVERY,
    answer_stack_requests,
    kill,
    log,
    observe,
    report,
    seconds_hung,
    wait_for_other_ranks,
)
from megascratch.supervision.report import RankStatus, refused

SAME_SIGNAL = (
    1.0  # seconds within which a repeated signal (delivered another way) counts as the same request
)
GRACE = 3.0  # seconds from the second request to stop until SIGKILL
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
BEGAN = "MEGASCRATCH_BEGAN"
"""The variable with time.time() when the first attempt of this run began; later attempts inherit it."""

UNKNOWN = 255
"""The exit code that multiprocessing reports for a process whose fork server is gone."""

RankErrors = tuple[tuple[int, str], ...]
"""Step and error of each rank."""


@dataclass(frozen=True)
class LaunchConfig:
    """What to start, and what to do when it fails."""

    # a module-level function; it unblocks FORWARDED once it can handle them
    target: Callable[[], int]
    ranks: int
    max_restarts: int
    limit: float  # seconds without progress that count as a hang
    reports: Path  # folder for the reports of failures
    preload: tuple[str, ...] = ()


def launch(plan: LaunchConfig) -> int:
    """Runs the ranks and returns the exit code: 0 when all ranks are done, a code of `config.exit_codes` when they have
    saved and stopped, 2 for bad input, 1 when the restarts are used up, 128 + signal number after a second request to
    stop."""
    return _Launcher(plan).run()


@dataclass
class Requests:
    """Requests to stop: the signals received, each with its time; a repetition within SAME_SIGNAL is not counted."""

    received: list[tuple[int, float]] = field(default_factory=list)
    forwarded: int = 0
    kill_at: float = float("inf")

    def add(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not any(number == other and now - when < SAME_SIGNAL for other, when in self.received):
            self.received.append((number, now))

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        caught = set(FORWARDED)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            caught.remove(signal.SIGHUP)  # nohup asked for it
        before = {number: signal.signal(number, self.add) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if is_own_process() else handler)

    def forward(self, pids: Sequence[int]) -> bool:
        """Sends the requests that are new to these processes. Returns: whether there were any."""
        new = self.received[self.forwarded :]
        for number, _ in new:
            self.forwarded += 1
            if self.forwarded == 2:
                self.kill_at = time.monotonic() + GRACE
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        return bool(new)

    @property
    def grace_is_over(self) -> bool:
        """Whether GRACE seconds have passed since the second request."""
        return time.monotonic() > self.kill_at


class _Launcher:
    def __init__(self, plan: LaunchConfig):
        self.plan = plan
        self.requests = Requests()
        self.began = str(time.time())
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
                if not again or self.requests.received or number == self.plan.max_restarts:
                    break
                if attempt.errors is not None and attempt.errors == before:
                    log(
                        "all ranks failed twice with the same error at the same step: not restarting"
                    )
                    break
                before = attempt.errors
                left = self.plan.max_restarts - number - 1
                plural = "" if left == 1 else "s"
                log(f"restarting all ranks ({left} more restart{plural} allowed)")
        return code


class _ForkServerDied(Exception):
    pass


class _Attempt:
    """One attempt of the run: all ranks from their start to their end."""

    def __init__(self, launcher: _Launcher, number: int):
        self.plan = launcher.plan
        self.requests = launcher.requests
        self.context = launcher.context
        self.began = launcher.began
        self.number = number
        self.folder = new_folder("ranks")
        self.processes: list[Any] = []
        self.errors: RankErrors | None = None

    def run(self) -> tuple[int, bool]:
        """Runs the attempt. Returns the exit code, and whether a restart may succeed."""
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
            process = self.context.Process(
                target=_run_rank,
                args=(self.plan.target, environment),
                daemon=True,
            )
            try:
                process.start()
            except (OSError, EOFError) as error:
                if not fork_server.has_died():
                    raise
                raise _ForkServerDied from error
            self.processes.append(process)

    def _watch(self) -> list[RankStatus] | None:
        """Watches until the attempt is over. Returns None if all ranks are done, have stopped, or refuse their input,
        otherwise the status of the ranks when one failed."""
        while True:
            self._pause(LOOK_EVERY)
            pids = [process.pid for process in self.processes if process.exitcode is None]
            self.requests.forward(pids)
            if self.requests.grace_is_over:
                kill(pids)
            codes = self._codes()
            if UNKNOWN in codes.values() and fork_server.has_died():
                raise _ForkServerDied
            if len(set(codes.values())) == 1 and codes[0] in (DONE, BAD_INPUT, *STOPS):
                return None
            if any(code not in (None, DONE, *STOPS) for code in codes.values()):
                return self._failed("one failed rank ends the attempt")
            hung = seconds_hung(self.folder, codes, self.plan.limit)
            if hung:
                return self._failed(f"no progress for {hung:g} s")
            if None not in codes.values():
                return observe(self.folder, codes)

    def _pause(self, seconds: float) -> None:
        """Waits so many seconds, or less if a rank ends."""
        wait([process.sentinel for process in self.processes if process.exitcode is None], seconds)

    def _failed(self, reason: str) -> list[RankStatus]:
        """Gives the other ranks a moment to end by themselves and report why, then logs the report; `run` kills the
        rest."""
        wait_for_other_ranks(self.folder, self._codes, self._pause)
        seen = observe(self.folder, self._codes())
        if not refused(seen) and len(self.requests.received) < 2:
            file = self.plan.reports / f"attempt_{self.number}.txt"
            log(report(seen, self.folder, file, reason))
        return seen

    def _errors_of_all(self) -> RankErrors | None:
        """Step and error of each rank if all of them failed by themselves and reported why, otherwise None."""
        seen = observe(self.folder, self._codes())
        errors = []
        for one in seen:
            if one.where is not None and one.where.ended and one.end == FAILED:
                errors.append((one.where.step, one.where.error))
        return tuple(errors) if len(errors) == len(seen) else None

    def _outcome(self, seen: list[RankStatus] | None) -> tuple[int, bool]:
        """The exit code, and whether a restart may succeed."""
        if len(self.requests.received) > 1:
            return 128 + self.requests.received[1][0], False
        if seen is None:
            code = self.processes[0].exitcode
            may_succeed = code not in (DONE, BAD_INPUT, *STOPS)
            return FAILED if code < 0 else code, may_succeed
        if refused(seen):
            return BAD_INPUT, False
        return FAILED, True

    def _codes(self) -> dict[int, int | None]:
        return {rank: process.exitcode for rank, process in enumerate(self.processes)}


def _run_rank(target: Callable[[], int], environment: dict[str, str]) -> None:
    """What the new process runs. Signals stay blocked, as in the fork server, until the target can handle them."""
    os.setsid()  # signals from the terminal go to the launcher, which forwards them once
    fork_server.end_with_fork_server()
    os.environ.clear()  # the fork server's is older
    os.environ.update(environment)
    answer_stack_requests()
    sys.exit(target())


def began() -> float:
    """time.time() when this run began; now, if no launcher has set the variable or its value is not a number."""
    try:
        return float(os.environ[BEGAN])
    except (KeyError, ValueError):
        return time.time()
