"""Starts and watches torchrun on one machine of a multi-node run, and returns the exit code of the run.

    this process --starts--> torchrun (joins the other machines, starts and restarts the ranks)
         |                       |--> rank 4   |--> rank 5  ...  |--> supervision.torchrun_watcher watches them
         |--signals-->           each rank itself: torchrun alone would give it 30 s and then kill it

The ranks write their exit codes into their heartbeat files, since torchrun only distinguishes success from failure.
Each process here ends when its parent ends, no matter what ended the parent.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megascratch.config.exit_codes import BAD_INPUT, DONE, FAILED, STOPS
from megascratch.parallel.endpoint import Endpoint
from megascratch.runtime.heartbeat import Heartbeat, read
from megascratch.runtime.processes import end_with_parent
from megascratch.supervision.folders import new_folder
from megascratch.supervision.launch import BEGAN, Requests
from megascratch.supervision.observe import LOOK_EVERY, is_alive, kill, log
from megascratch.supervision.report import LOST, RankStatus, refused
from megascratch.supervision.torchrun_watcher import ROOT, rendezvous_settings

LAST_WORDS = (
    20  # seconds that torchrun has to end after ranks that failed for the last time; it needs 2
)
SAY_FIRST = (
    10.0  # seconds until a node that waits for others says so; then twice as long each time,
)
SAY_AT_LEAST_EVERY = 60.0  # up to so many seconds
COMMAND = "MEGASCRATCH_COMMAND"
"""The variable with the command that the user gave to the launcher; ranks have other arguments."""
NEXT_MEETING = 660  # seconds that torchrun has to restart ranks; its rendezvous times out after 600


@dataclass(frozen=True)
class Nodes:
    """The arguments of torchrun on this machine."""

    nnodes: str  # N, or MIN:MAX
    ranks: int  # on this machine
    max_restarts: int
    endpoint: str  # HOST:PORT of the rendezvous, the same on all machines; the host is one of them
    run: str  # the id of the run
    settings: str | None  # KEY=VALUE,... for the rendezvous, in addition to `rendezvous_settings`
    local_addr: str | None  # the address at which the other machines reach this one
    words: list[str]  # arguments of the megascratch command
    command: str  # the user's, for the folder of the run
    log: Path  # of the run


def launch_node(nodes: Nodes) -> int:
    """Runs this machine's ranks and returns the exit code: 0 when all are done, a code of `config.exit_codes` when they
    have saved and stopped, 2 when they refused their input, 1 when torchrun gave up, 128 + signal number after a second
    request to stop.

    Raises: UserError if the machines cannot meet at the endpoint.
    """
    Endpoint.parse("--rdzv-endpoint", nodes.endpoint).require_usable(_hosts(nodes.settings))
    requests = Requests()
    root = new_folder("node")
    try:
        with requests.caught():
            agent = subprocess.Popen(
                _command(nodes),
                env=_environment(root, nodes.command),
                start_new_session=True,
                preexec_fn=partial(_begin_agent, os.getpid()),
            )
            return _serve(agent, root, requests, nodes)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _command(nodes: Nodes) -> list[str]:
    settings = rendezvous_settings()
    if nodes.settings:
        settings += f",{nodes.settings}"
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes", nodes.nnodes]
    command += ["--nproc-per-node", str(nodes.ranks)]
    command += ["--max-restarts", str(nodes.max_restarts)]
    command += ["--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", nodes.endpoint]
    command += ["--rdzv-id", nodes.run]
    command += ["--rdzv-conf", settings]
    if nodes.local_addr:
        command += ["--local-addr", nodes.local_addr]
    return [*command, "-m", "megascratch", *nodes.words]


def _environment(root: Path, command: str) -> dict[str, str]:
    """The environment of torchrun. Its agents must not share their store with the ranks: all attempts would share it,
    and the second attempt would read the addresses of the first (pytorch issue 135712)."""
    return {
        BEGAN: str(time.time()),
        **os.environ,
        ROOT: str(root),
        COMMAND: command,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def _begin_agent(launcher: int) -> None:
    """Runs in the child process before it becomes torchrun."""
    end_with_parent(launcher)
    # would end torchrun; the ranks handle it themselves
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _hosts(settings: str | None) -> bool | None:
    """Whether the rendezvous settings say that this machine hosts the store; None: torchrun decides."""
    for setting in (settings or "").split(","):
        name, _, value = setting.partition("=")
        if name.strip() == "is_host":
            return value.strip().lower() in ("1", "true", "t", "yes", "y")
    return None


def _serve(agent: subprocess.Popen, root: Path, requests: Requests, nodes: Nodes) -> int:
    """Watches torchrun until it has ended, and forwards requests to stop. Returns: the exit code of the run."""
    killed = False  # by this process, because torchrun would not end by itself
    ranks_seen = time.monotonic()
    waiting = _Waiting(nodes)
    log_is_named = False
    while agent.poll() is None:
        time.sleep(LOOK_EVERY)
        ranks = _newest(root)
        pids = [where.pid for where in ranks if is_alive(where.pid)]
        if pids or not ranks:
            ranks_seen = time.monotonic()
        elif _refused(ranks):
            killed = True  # torchrun would restart them
        elif time.monotonic() - ranks_seen > _patience(root, ranks, nodes.max_restarts):
            log(
                "torchrun does not exit although its ranks have ended: killing it; the machine of the rendezvous "
                f"endpoint {nodes.endpoint} may be unreachable"
            )
            killed = True
        if killed:
            kill([agent.pid])
            agent.wait()
        if len(pids) == nodes.ranks and not log_is_named:
            log_is_named = True
            _say_where_the_log_is(ranks, nodes)
        first_meeting = not any(root.iterdir())
        waiting.look(meets=first_meeting or (not pids and _failed(ranks)))
        if requests.forward(pids) and not pids:
            agent.terminate()  # no rank is running
        if requests.grace_is_over:
            kill([*pids, agent.pid])
    if requests.forwarded > 1:
        second, _ = requests.received[1]
        return 128 + second
    if agent.returncode < 0 and not killed and not requests.forwarded:
        killer = signal.Signals(-agent.returncode).name
        log(
            f"torchrun was killed by {killer}, and the ranks of this node ended with it: run the same command again"
        )
    return _exit_code(agent.returncode, _newest(root))


def _say_where_the_log_is(ranks: Sequence[Heartbeat], nodes: Nodes) -> None:
    """On a node without the first rank, which prints the log of the run."""
    numbers = sorted(where.rank for where in ranks)
    if 0 in numbers:
        return
    named = (
        f"rank {numbers[0]} runs"
        if len(numbers) == 1
        else f"ranks {numbers[0]} to {numbers[-1]} run"
    )
    log(
        f"{named} here; the log of the run is printed on the node of rank 0, and is in {nodes.log} there"
    )


class _Waiting:
    """Logs that this node waits for others, and for how many: after SAY_FIRST seconds, then less and less often."""

    def __init__(self, nodes: Nodes):
        least = int(nodes.nnodes.split(":")[0])
        if least == 1:
            missing = "another node"
        elif least == 2:
            missing = "1 of 2 nodes"
        else:
            missing = f"up to {least - 1} of {least} nodes"
        self._what = f"waiting for {missing} at {nodes.endpoint}"
        self._since = time.monotonic()
        self._next = self._since + SAY_FIRST

    def look(self, meets: bool) -> None:
        """Logs if it is time to. `meets`: whether torchrun seems to be waiting for the other nodes now."""
        now = time.monotonic()
        waited = now - self._since
        if not meets:
            self._since = now
            self._next = now + SAY_FIRST
        elif now >= self._next:
            self._next = now + min(waited, SAY_AT_LEAST_EVERY)
            log(f"{self._what}, for {waited:.0f} s")


def _exit_code(agent: int, ranks: Sequence[Heartbeat]) -> int:
    """The exit code of the run, from torchrun's exit code and the ranks of the last attempt. torchrun also fails if a
    batch system sent its request to stop to every process of the job; if all ranks have saved, their codes count."""
    codes = {where.code if where.ended else FAILED for where in ranks}
    if _refused(ranks):
        return BAD_INPUT
    saved = codes and codes <= {DONE, *STOPS} and codes != {DONE}
    if agent != 0 and not saved:
        return FAILED
    return max(codes & {DONE, *STOPS}, default=DONE)


def _patience(root: Path, ranks: Sequence[Heartbeat], max_restarts: int) -> float:
    """Seconds that torchrun may stay alive without ranks: if a network link is down, it waits for an answer forever."""
    attempts = len(list(root.iterdir()))
    return LAST_WORDS if _failed(ranks) and attempts > max_restarts else NEXT_MEETING


def _failed(ranks: Sequence[Heartbeat]) -> bool:
    return any(not where.ended or where.code not in (DONE, *STOPS) for where in ranks)


def _refused(ranks: Sequence[Heartbeat]) -> bool:
    """Whether ranks that have ended refused their input."""
    seen = []
    for where in ranks:
        code = where.code if where.ended else LOST
        seen.append(RankStatus(where.rank, code, state="", idle_seconds=0.0, where=where))
    return refused(seen)


def _newest(root: Path) -> Sequence[Heartbeat]:
    """The ranks of the last attempt."""
    attempts = sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime)
    return read(attempts[-1]) if attempts else []
