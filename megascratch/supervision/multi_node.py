"""One machine's part of a run on several: torchrun in, the exit code of the run out.

    this process --starts--> torchrun (meets the other machines, starts ranks, starts them again)
         |                       |--> rank 4   |--> rank 5  ...  |--> supervision.torchrun_watcher watches them
         |--signals-->           each rank itself: torchrun alone would give it 30 s and then kill it

The ranks say in their files how they ended, since torchrun only knows well and badly. Each process here ends with the
one above it, whoever kills that.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megascratch.config.exit_codes import BAD_INPUT, DONE, FAILED, STOPS
from megascratch.parallel.endpoint import Endpoint
from megascratch.runtime.heartbeat import Heartbeat, read
from megascratch.runtime.processes import end_with_parent
from megascratch.supervision.folders import new_folder
from megascratch.supervision.launch import BEGAN, GRACE, Requests
from megascratch.supervision.observe import LOOK_EVERY, kill, log, state_of
from megascratch.supervision.report import LOST, RankStatus, refused
from megascratch.supervision.torchrun_watcher import ROOT, rendezvous_settings

LAST_WORDS = 20  # seconds in which torchrun ends after ranks that failed for the last time; it needs 2
SAY_EVERY = 10.0  # seconds between two words of a node that waits for others
NEXT_MEETING = 660  # as many until it has started ranks again; it gives up the meeting itself after 600


@dataclass(frozen=True)
class Nodes:
    """What torchrun is told."""

    nnodes: str  # N, or MIN:MAX
    ranks: int  # on this machine
    max_restarts: int
    endpoint: str  # HOST:PORT, the same on all machines; it lies on one of them
    run: str
    settings: str | None  # KEY=VALUE,... of the rendezvous, beside `rendezvous_settings`
    local_addr: str | None  # under which the others reach this machine
    words: list[str]  # of the command


def launch_node(nodes: Nodes) -> int:
    """0 when all is done, the code of `config.exit_codes` when this machine's ranks have saved and stopped, 2 when they
    refused their input, 1 when torchrun gave up, 128 + signal number after a second request to stop.

    Raises: UserError where the machines can never meet at the endpoint.
    """
    Endpoint.parse("--rdzv-endpoint", nodes.endpoint).require_usable(_hosts(nodes.settings))
    requests = Requests()
    root = new_folder("node")
    try:
        with requests.caught():
            agent = subprocess.Popen(
                _command(nodes),
                env=_environment(root),
                start_new_session=True,
                preexec_fn=partial(_begin_agent, os.getpid()),
            )
            return _serve(agent, root, requests, nodes)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _command(nodes: Nodes) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", nodes.nnodes, "--nproc-per-node", str(nodes.ranks), "--max-restarts", str(nodes.max_restarts)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", nodes.endpoint, "--rdzv-id", nodes.run),
        *("--rdzv-conf", ",".join(filter(None, (rendezvous_settings(), nodes.settings)))),
        *(("--local-addr", nodes.local_addr) if nodes.local_addr else ()),
        *("-m", "megascratch", *nodes.words),
    ]


def _environment(root: Path) -> dict[str, str]:
    """torchrun's own store would be shared by all attempts, and the second read the addresses of the first (pytorch
    issue 135712)."""
    return {BEGAN: str(time.time()), **os.environ, ROOT: str(root), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def _begin_agent(launcher: int) -> None:
    """In the process that becomes torchrun."""
    end_with_parent(launcher)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # would end torchrun; the ranks listen for it themselves


def _hosts(settings: str | None) -> bool | None:
    """Whether the settings of the rendezvous say that this machine opens the store; None: they leave it to torchrun."""
    for setting in (settings or "").split(","):
        name, _, value = setting.partition("=")
        if name.strip() == "is_host":
            return value.strip().lower() in ("1", "true", "t", "yes", "y")
    return None


def _serve(agent: subprocess.Popen, root: Path, requests: Requests, nodes: Nodes) -> int:
    kill_at = float("inf")
    handled = 0
    ended = False  # whether this process has killed torchrun
    ranks_seen = time.monotonic()
    waiting = _Waiting(nodes)
    while agent.poll() is None:
        time.sleep(LOOK_EVERY)
        ranks = _newest(root)
        pids = [where.pid for where in ranks if state_of(where.pid) not in ("", "Z", "X")]
        if pids or not ranks:
            ranks_seen = time.monotonic()
        elif _refused(ranks):
            ended = True  # torchrun would start them again
        elif time.monotonic() - ranks_seen > _patience(root, ranks, nodes.max_restarts):
            log("torchrun does not end, its ranks have: the machine it meets the others at may be out of reach")
            ended = True
        if ended:
            kill([agent.pid])
            agent.wait()
        waiting.look(meets=not any(root.iterdir()) or (not pids and _failed(ranks)))
        for number, _ in requests.came[handled:]:
            handled += 1
            if handled == 2:
                kill_at = time.monotonic() + GRACE
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, number)
            if not pids:
                agent.terminate()  # nothing has begun
        if time.monotonic() > kill_at:
            kill([*pids, agent.pid])
    if handled > 1:
        return 128 + requests.came[1][0]
    if agent.returncode < 0 and not ended and not handled:
        killer = signal.Signals(-agent.returncode).name
        log(f"torchrun was killed by {killer}, and the ranks of this node ended with it: start the same command again")
    return _exit_code(agent.returncode, _newest(root))


class _Waiting:
    """Says every SAY_EVERY seconds that this node waits for others, and for how many at most."""

    def __init__(self, nodes: Nodes):
        least = int(nodes.nnodes.split(":")[0])
        missing = "another node" if least == 1 else f"{'up to ' if least > 2 else ''}{least - 1} of {least} nodes"
        self._what = f"waiting for {missing} at {nodes.endpoint}"
        self._since = self._said = time.monotonic()

    def look(self, meets: bool) -> None:
        """`meets`: whether torchrun is meeting the other nodes now, as far as one can see."""
        now = time.monotonic()
        if not meets:
            self._since = self._said = now
        elif now - self._said >= SAY_EVERY:
            self._said = now
            log(f"{self._what}, since {now - self._since:.0f} s")


def _exit_code(agent: int, ranks: Sequence[Heartbeat]) -> int:
    """The exit code, from torchrun's and the ranks of the last attempt. torchrun fails, too, where a batch system sent
    its request to every process of the job: ranks that have all saved then know better."""
    codes = {where.code if where.ended else FAILED for where in ranks}
    if _refused(ranks):
        return BAD_INPUT
    saved = codes and codes <= {DONE, *STOPS} and codes != {DONE}
    return FAILED if agent != 0 and not saved else max(codes & {DONE, *STOPS}, default=DONE)


def _patience(root: Path, ranks: Sequence[Heartbeat], max_restarts: int) -> float:
    """Seconds that torchrun may live on without ranks. It waits without end for an answer over a link that is down."""
    return LAST_WORDS if _failed(ranks) and len(list(root.iterdir())) > max_restarts else NEXT_MEETING


def _failed(ranks: Sequence[Heartbeat]) -> bool:
    return any(not where.ended or where.code not in (DONE, *STOPS) for where in ranks)


def _refused(ranks: Sequence[Heartbeat]) -> bool:
    """Of ranks that have ended."""
    return refused([RankStatus(where.rank, where.code if where.ended else LOST, "", 0.0, where) for where in ranks])


def _newest(root: Path) -> Sequence[Heartbeat]:
    """The ranks of the last attempt."""
    attempts = sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime)
    return read(attempts[-1]) if attempts else []
