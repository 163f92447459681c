"""The rendezvous of the ranks, before any process group: a store of short texts that every rank can write and read.

The launcher of one machine provides a file for it (MEGASCRATCH_STORE), in a folder that only this user can open. Under
torchrun it is a TCP store described by environment variables: on one machine it listens only on the loopback interface,
between machines it listens at MASTER_ADDR.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megascratch.config.errors import RanksSilent, UserError
from megascratch.parallel.endpoint import Endpoint
from megascratch.runtime.heartbeat import STORE
from megascratch.runtime.launch_environment import launch_environment

LOOPBACK = "127.0.0.1"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SILENT = "silent: "
GOODBYE = 5.0  # seconds that the first rank waits until the others have read the answer


@dataclass(frozen=True)
class Rendezvous:
    """A store that all ranks of a launch can reach."""

    store: dist.Store
    rank: int
    world: int
    timeout: timedelta

    def decide(self, question: str, mine: str, judge: Callable[[Sequence[str]], str]) -> str:
        """The first rank calls `judge` with the texts of all ranks, in rank order; all ranks get its answer.
        Each `question` may be used only once.

        Raises: RanksSilent on all ranks if a rank did not write its text in time; the message names it.
        """
        self.store.set(f"{question}/{self.rank}", mine)
        if self.rank != 0:
            try:
                self.store.wait([f"{question}/verdict"], self.timeout)
            except RuntimeError as error:  # a file store raises no more specific error on a timeout
                raise RanksSilent(_missing([0], self.timeout)) from error
            answer = self.store.get(f"{question}/verdict").decode()
        else:
            texts, silent = self._texts([f"{question}/{rank}" for rank in range(self.world)])
            answer = SILENT + _missing(silent, self.timeout) if silent else judge(texts)
            self.store.set(f"{question}/verdict", answer)
        if answer.startswith(SILENT):
            self.leave()
            raise RanksSilent(answer.removeprefix(SILENT))
        return answer

    def leave(self) -> None:
        """Called before a process ends: rank 0, whose process may host the store, waits until all others have left."""
        left = self.store.add("left", 1)
        ends = time.monotonic() + GOODBYE
        while self.rank == 0 and left < self.world and time.monotonic() < ends:
            time.sleep(0.02)
            left = self.store.add("left", 0)

    def _texts(self, keys: list[str]) -> tuple[list[str], list[int]]:
        """The texts of the keys of all ranks, read together, once all are there. If they are not in time: no texts, and
        the ranks that did not write."""
        try:
            self.store.wait(keys, self.timeout)
        except RuntimeError:
            silent = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
            if silent:
                return [], silent
        return [text.decode() for text in self.store.multi_get(keys)], []


def join(timeout: timedelta) -> Rendezvous | None:
    """Joins the other ranks of the launch that the environment describes; None if this process is the only rank.

    Raises:
        UserError: the address cannot be used (port taken or impossible, host unknown, another program there).
    """
    environment = launch_environment()
    world = environment.world_size
    if world == 1:
        return None
    rank = environment.rank
    if STORE not in os.environ:
        _require_usable(_address(), rank)
    local = on_one_machine()
    if local:
        for name in INTERFACES:
            os.environ.setdefault(name, loopback_interface())
    try:
        if STORE in os.environ:
            store: dist.Store = dist.FileStore(os.environ[STORE], world)
            store.set_timeout(timeout)
        elif local and _hosts_its_own():
            store = _local_store(rank, world, timeout)
        else:
            store = _torchruns_store(rank, world, timeout)
    except (dist.DistNetworkError, dist.DistStoreError, OSError) as error:
        address = (
            os.environ.get(STORE) or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        )
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot open the rendezvous store at {address}: {first_line}; choose another port, e.g. "
            "torchrun --rdzv-backend c10d --rdzv-endpoint localhost:0"
        ) from error
    return Rendezvous(store, rank, world, timeout)


def _address() -> Endpoint:
    """The rendezvous address that torchrun, or another launcher, has put into the environment. Raises: UserError if it
    is incomplete."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {' and '.join(missing)} is not set: start with "
            "--nproc-per-node or torchrun, or unset WORLD_SIZE"
        )
    host = os.environ["MASTER_ADDR"]
    host = f"[{host}]" if ":" in host else host
    return Endpoint.parse("MASTER_ADDR:MASTER_PORT", f"{host}:{os.environ['MASTER_PORT']}")


def _require_usable(address: Endpoint, rank: int) -> None:
    """Raises: UserError if the ranks cannot meet there. A port that is in use is only found when rank 0 opens it."""
    if rank == 0 and _hosts_its_own():
        address.addresses()
    else:
        address.require_usable(hosted_here=False)


def on_one_machine() -> bool:
    """Whether all ranks run on this machine, according to torchrun's variables or to the address."""
    environment = launch_environment()
    if environment.local_world_size is None:
        return os.environ.get("MASTER_ADDR") in (LOOPBACK, "localhost")
    return environment.local_world_size == environment.world_size


def loopback_interface() -> str:
    """The name of the loopback interface: `lo`, or `lo0` on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    if "lo" not in names and "lo0" in names:
        return "lo0"
    return "lo"


def _hosts_its_own() -> bool:
    """Whether rank 0 hosts the store, not torchrun's agent."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)


def _torchruns_store(rank: int, world: int, timeout: timedelta) -> dist.Store:
    """The store that torchrun's variables describe. If torchrun's agent hosts it, one store lasts over all restarts and
    still holds the addresses of old ranks, so each attempt gets a prefix of its own. Otherwise each attempt has its own
    store and needs no prefix: a machine that joined later has counted fewer attempts."""
    store: dist.Store = next(rendezvous("env://", rank, world, timeout=timeout))[0]
    if _hosts_its_own():
        return store
    return dist.PrefixStore(f"attempt {launch_environment().attempt}", store)


def _local_store(rank: int, world: int, timeout: timedelta) -> dist.Store:
    """A store that only this machine can reach; by default torch would listen on every interface."""
    port = int(os.environ["MASTER_PORT"])
    listener = None
    if rank == 0:
        with socket.create_server((LOOPBACK, port)) as server:
            listener = server.detach()
    return dist.TCPStore(
        LOOPBACK,
        port,
        world,
        rank == 0,
        timeout,
        wait_for_workers=False,
        master_listen_fd=listener,
        use_libuv=True,
    )


def _missing(ranks: list[int], timeout: timedelta) -> str:
    """Says which ranks are silent, and what to do."""
    word = "rank" if len(ranks) == 1 else "ranks"
    named = ", ".join(map(str, ranks[:20]))
    if len(ranks) > 20:
        named += f" and {len(ranks) - 20} more"
    return (
        f"{word} {named} did not respond within {timeout.total_seconds():g} s: see the "
        "output of these ranks, or increase --start-timeout-minutes"
    )
