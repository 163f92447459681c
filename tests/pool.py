"""Runs a function on N gloo ranks: `on_ranks(4, function, *args)` returns the four results in rank order.

Workers come from a fork server that has torch loaded, live for the whole test session and keep their process group
while the number of ranks stays the same, so that a distributed test costs tenths of a second.
"""

import atexit
import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from megascratch.parallel.grid import Grid
from megascratch.parallel.mesh import Mesh

TIMEOUT = timedelta(seconds=30)
_context = mp.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "numpy"])


class RankFailed(AssertionError):
    """A rank raised; the text holds every rank's first line and the full trace of the first cause."""


def _serve(connection, rank: int) -> None:
    torch.set_num_threads(1)
    meeting = None
    while (task := connection.recv()) is not None:
        function, args, world, meeting_file, active = task
        try:
            if meeting_file != meeting and dist.is_initialized():
                dist.destroy_process_group()
            if meeting_file != meeting and active:
                dist.init_process_group(
                    "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=world, timeout=TIMEOUT
                )
            meeting = meeting_file
            connection.send((True, function(*args) if active else None))
        except BaseException as error:
            connection.send((False, (f"{type(error).__name__}: {error}", traceback.format_exc())))


class Pool:
    """Worker processes that are started when first needed."""

    def __init__(self) -> None:
        self.workers: list[tuple[Any, Any]] = []
        self.world = 0
        self.meeting = ""

    def run(self, world: int, function: Callable, *args: Any) -> list:
        self._grow(world)
        if world != self.world:
            self._regroup(world)
        for rank, (_, connection) in enumerate(self.workers):
            connection.send((function, args, world, self.meeting, rank < world))
        answers = [self._answer(rank) for rank in range(len(self.workers))][:world]
        failures = [(rank, value) for rank, (good, value) in enumerate(answers) if not good]
        if failures:
            self.world = 0  # the groups are broken: meet anew
            self._raise(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        for process, connection in self.workers:
            try:
                connection.send(None)
                process.join(5)
            except (OSError, ValueError):
                pass
            if process.is_alive():
                process.terminate()
        self.workers.clear()

    def _grow(self, world: int) -> None:
        while len(self.workers) < world:
            here, there = _context.Pipe()
            process = _context.Process(target=_serve, args=(there, len(self.workers)), daemon=True)
            process.start()
            self.workers.append((process, here))

    def _regroup(self, world: int) -> None:
        folder = tempfile.mkdtemp(prefix="ranks-")
        self.meeting, self.world = os.path.join(folder, "meeting"), world

    def _answer(self, rank: int) -> tuple[bool, Any]:
        if rank >= len(self.workers):
            return False, ("pool closed after another rank's end", "no trace")
        process, connection = self.workers[rank]
        if not connection.poll(TIMEOUT.total_seconds() * 1.5):
            process.kill()
            self.close()
            return False, ("hung: killed", "no trace")
        try:
            return connection.recv()
        except EOFError:
            self.close()
            return False, ("died", "no trace")

    @staticmethod
    def _raise(failures: list[tuple[int, tuple[str, str]]]) -> None:
        echo = ("closed by peer", "Connection reset", "timed out", "Timed out")
        first = next((f for f in failures if not any(word in f[1][0] for word in echo)), failures[0])
        lines = [f"rank {rank}: {message}" for rank, (message, _) in failures]
        raise RankFailed("\n".join([*lines, f"--- rank {first[0]}:", first[1][1]]))


@lru_cache(maxsize=1)
def _pool() -> Pool:
    pool = Pool()
    atexit.register(pool.close)
    return pool


def on_ranks(world: int, function: Callable, *args: Any) -> list:
    """Calls a module-level ``function(*args)`` on `world` ranks; results in rank order.

    Raises:
        RankFailed: a rank raised, hung or died.
    """
    return _pool().run(world, function, *args)


@lru_cache(maxsize=64)
def _mesh(sizes: tuple[tuple[str, int], ...], meeting: int) -> Mesh:
    return Mesh.build(Grid(dict(sizes)))


def mesh_of(tp: int = 1, pp: int = 1, dp: int = 1) -> Mesh:
    """On a rank: the mesh of this layout; its groups are made once per worker and kept."""
    meeting = id(dist.group.WORLD) if dist.is_initialized() else 0
    return _mesh(tuple(Grid.dense(tp=tp, pp=pp, dp=dp).sizes.items()), meeting)
