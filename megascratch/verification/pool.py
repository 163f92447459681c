"""Runs a function on N ranks of this machine: `pool.run(4, function, *args)` returns the four results in rank order.

Workers come from a fork server that has torch and the trainer loaded, live as long as the pool and keep their process
group while the number of ranks stays the same, so that a distributed run costs tenths of a second. If a rank raises,
hangs or dies, the call raises an exception with the first cause; it never waits forever.
"""

import contextlib
import gc
import multiprocessing as mp
import os
import pickle
import shutil
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

from megascratch.config.layout import Layout
from megascratch.parallel import groups
from megascratch.parallel.groups import GroupMaker, Timeouts
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.supervision import fork_server
from megascratch.supervision.report import ECHOES

CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["megascratch.verification.run_layout"])  # with all of training

Answer = tuple[bool, Any]  # (True, result), or (False, (message, trace))


class RankFailed(RuntimeError):
    """A rank raised, hung or died; the text holds every rank's first line and the full trace of the first cause."""

    def __init__(self, failures: list[tuple[int, tuple[str, str]]]):
        causes = []  # without the ranks that only report that another one is gone
        for rank, (message, trace) in failures:
            if not any(word in message for word in ECHOES):
                causes.append((rank, (message, trace)))
        first, (cause, trace) = (causes or failures)[0]
        lines = [f"rank {rank}: {message}" for rank, (message, _) in failures]
        super().__init__("\n".join([*lines, f"--- rank {first}:", trace]))
        self.first_cause = f"rank {first}: {cause.splitlines()[0]}"


class Pool:
    """Worker processes that are started when first needed.

    Args:
        timeout: seconds after which a collective fails; a worker that does not answer in 1.5 times as long is killed.
        device: 'cpu' or 'cuda' (rank r on device r; with gloo and fewer devices several ranks share one).
        grace: seconds that the other ranks still have after one has failed; None: as long as the time-out allows.
        backend: 'gloo' or 'nccl'; None: NCCL on cuda.
    """

    def __init__(
        self,
        timeout: float,
        device: str = "cpu",
        grace: float | None = None,
        backend: str | None = None,
    ) -> None:
        self.timeout = timeout
        self.device = device
        self.grace = grace
        self.backend = backend or ("nccl" if device == "cuda" else "gloo")
        self.workers: list[tuple[Any, Connection]] = []
        self.world = 0
        self.meeting = ""

    def run(self, world: int, function: Callable, *args: Any) -> list:
        """Calls a module-level ``function(*args)`` on `world` ranks; results in rank order.

        Raises:
            RankFailed: a rank raised, hung or died.
        """
        if not all(process.is_alive() for process, _ in self.workers):
            self.close()  # a worker has died since the last run
        self._grow(world)
        if world != self.world:
            self._regroup(world)
        for rank, (_, connection) in enumerate(self.workers):
            connection.send((function, args, world, self.meeting, rank < world))
        answers = self._answers()[:world]
        failures = [(rank, value) for rank, (good, value) in enumerate(answers) if not good]
        if failures:
            self.world = 0  # the groups are broken: build new ones
            raise RankFailed(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        """Ends all workers; the next run starts new ones."""
        for _, connection in self.workers:
            with contextlib.suppress(OSError, ValueError):
                connection.send(None)
        for process, connection in self.workers:
            process.join(5)
            if process.is_alive():
                process.kill()
            connection.close()
        self.workers.clear()
        self.world = 0
        self._forget_meeting()

    def _grow(self, world: int) -> None:
        while len(self.workers) < world:
            here, there = CONTEXT.Pipe()
            rank = len(self.workers)
            process = CONTEXT.Process(
                target=_serve,
                args=(there, rank, self.timeout, self.device, self.backend),
                daemon=True,
            )
            process.start()
            there.close()  # otherwise the pipe would stay open after the worker has died
            self.workers.append((process, here))

    def _regroup(self, world: int) -> None:
        self._forget_meeting()
        self.meeting = os.path.join(tempfile.mkdtemp(prefix="ranks-"), "meeting")
        self.world = world

    def _forget_meeting(self) -> None:
        if self.meeting:
            shutil.rmtree(os.path.dirname(self.meeting), ignore_errors=True)
            self.meeting = ""

    def _answers(self) -> list[Answer]:
        """The answers of all workers. Kills workers that do not answer in time; the next run then starts new ones."""
        answers: dict[int, Answer] = {}
        ends = monotonic() + 1.5 * self.timeout
        waiting = {connection: rank for rank, (_, connection) in enumerate(self.workers)}
        while waiting and (ready := wait(list(waiting), max(0.0, ends - monotonic()))):
            for connection in ready:
                rank = waiting.pop(connection)  # type: ignore[call-overload]
                answers[rank] = _received(connection)  # type: ignore[arg-type]
                if not answers[rank][0] and self.grace is not None:
                    ends = min(ends, monotonic() + self.grace)
        died = any(not good and value[0] == "died" for good, value in answers.values())
        for rank in waiting.values():
            self.workers[rank][0].kill()
            answers[rank] = False, ("timed out: killed", "no trace")
        if died or waiting:
            self.close()
        return [answers[rank] for rank in sorted(answers)]


def _received(connection: Connection) -> Answer:
    try:
        answer: Answer = connection.recv()
        return answer
    except (EOFError, OSError):
        return False, ("died", "no trace")


def _serve(connection: Connection, rank: int, timeout: float, device: str, backend: str) -> None:
    """The main loop of a worker: runs tasks and sends their results. It ends with the process that made the pool."""
    fork_server.end_with_fork_server()
    torch.set_num_threads(1)
    meeting = None
    while (task := connection.recv()) is not None:
        function, args, world, meeting_file, active = task
        try:
            if meeting_file != meeting:
                _kept().leave()
                gc.freeze()  # modules stay: no later collection visits them, of 300,000 objects
                if active:
                    _kept().meet(
                        meeting_file, rank, world, timeout, place_of(device, rank), backend
                    )
            meeting = meeting_file
            result = function(*args) if active else None
            # by value: `send` would open a file of shared memory for each tensor
            connection.send_bytes(pickle.dumps((True, result)))
        except BaseException as error:
            connection.send((False, (f"{type(error).__name__}: {error}", traceback.format_exc())))


def place_of(device: str, rank: int) -> torch.device:
    """The device of a rank. If there are more ranks than devices, ranks share them."""
    if device == "cuda":
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device(device)


class _Kept:
    """A worker's rendezvous and its newest mesh. Old ones are closed, because each gloo group has a thread that wakes
    100 times a second."""

    def __init__(self) -> None:
        self.backend = ""
        self.rendezvous: Rendezvous | None = None
        self.meshes = 0  # of this rendezvous; the same on all ranks
        self.key: tuple | None = None
        self.mesh: Mesh | None = None

    def meet(
        self, file: str, rank: int, world: int, timeout: float, device: torch.device, backend: str
    ) -> None:
        """Joins the ranks of a run. They get torch's default group, too, for functions that use torch.distributed."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store = dist.FileStore(file, world)
        self.backend = backend
        self.rendezvous = Rendezvous(store, rank, world, timedelta(seconds=timeout))
        self.meshes = 0
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("default", store),
            rank=rank,
            world_size=world,
            timeout=self.rendezvous.timeout,
            device_id=device if backend == "nccl" else None,
        )

    def maker(self, timeouts: Timeouts | None) -> GroupMaker | None:
        """Makes the groups of the next mesh."""
        meeting = self.rendezvous
        if meeting is None:
            return None
        self.meshes += 1
        store = dist.PrefixStore(f"mesh {self.meshes}", meeting.store)
        return groups.maker_of(
            self.backend,
            Rendezvous(store, meeting.rank, meeting.world, meeting.timeout),
            timeouts or Timeouts.equal(meeting.timeout),
        )

    def drop(self) -> None:
        """Closes the mesh."""
        if self.mesh is not None:
            self.mesh.close()
        self.key = None
        self.mesh = None
        gc.collect()

    def leave(self) -> None:
        """Closes the mesh and leaves the run."""
        self.drop()
        self.rendezvous = None
        groups.stop()


@lru_cache(maxsize=1)
def _kept() -> _Kept:
    return _Kept()


def group_maker(timeouts: Timeouts | None = None) -> GroupMaker | None:
    """What makes the groups of one mesh, on a worker; called by all ranks. None outside a worker.

    Args:
        timeouts: default: the pool's for everything.
    """
    return _kept().maker(timeouts)


def mesh_of(tp: int = 1, pp: int = 1, dp: int = 1, device: str = "cpu", **more: int) -> Mesh:
    """`mesh_for` the layout of these sizes; `more`: those of the other axes."""
    return mesh_for(Layout(tp, pp, dp, **more), device)


def mesh_for(layout: Layout, device: str = "cpu") -> Mesh:
    """The mesh of a layout, on the calling rank. Its groups are kept until another layout is requested."""
    kept = _kept()
    place = place_of(device, 0 if kept.rendezvous is None else kept.rendezvous.rank)
    key = (layout, place)
    if kept.mesh is None or kept.key != key:
        kept.drop()
        kept.mesh = Mesh.build(layout, place, group_maker())
        kept.key = key
    return kept.mesh
