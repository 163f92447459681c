"""Where the ranks of a launch first meet, before any process group: a store of small texts that every rank can write
to and read from.

The launcher of one machine names a file for it (MEGASCRATCH_STORE), in a folder that only this user can open. torchrun
describes a place in the environment: on one machine everything listens on the loopback interface alone, between
machines the store listens where MASTER_ADDR says.
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

LOOPBACK = "127.0.0.1"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SILENT = "silent: "
GOODBYE = 5.0  # seconds that the first rank waits for the others to have read the verdict


@dataclass(frozen=True)
class Rendezvous:
    """A store that all ranks of a launch reach."""

    store: dist.Store
    rank: int
    world: int
    timeout: timedelta

    def judged(self, question: str, mine: str, judge: Callable[[Sequence[str]], str]) -> str:
        """What the first rank's `judge` says of the texts of all ranks, in rank order; the same on all ranks.
        A question is asked once.

        Raises: RanksSilent on all ranks where one was silent too long, naming it.
        """
        self.store.set(f"{question}/{self.rank}", mine)
        if self.rank != 0:
            answer = self._of(f"{question}/verdict", self.timeout)
            if answer is None:
                raise RanksSilent(_missing([0], self.timeout))
        else:
            ends = time.monotonic() + self.timeout.total_seconds()
            texts = [
                self._of(f"{question}/{rank}", timedelta(seconds=max(ends - time.monotonic(), 0.01)))
                for rank in range(self.world)
            ]
            silent = [rank for rank, text in enumerate(texts) if text is None]
            answer = SILENT + _missing(silent, self.timeout) if silent else judge([text or "" for text in texts])
            self.store.set(f"{question}/verdict", answer)
        if answer.startswith(SILENT):
            self.leave()
            raise RanksSilent(answer.removeprefix(SILENT))
        return answer

    def leave(self) -> None:
        """Before an end: the first rank, whose process may hold the store, waits until the others have left."""
        self.store.set(f"left/{self.rank}", "")
        ends = time.monotonic() + GOODBYE
        everyone = [f"left/{rank}" for rank in range(self.world)]
        while self.rank == 0 and not self.store.check(everyone) and time.monotonic() < ends:
            time.sleep(0.02)

    def _of(self, key: str, timeout: timedelta) -> str | None:
        """None: it did not come in time."""
        try:
            self.store.wait([key], timeout)
            return self.store.get(key).decode()
        except RuntimeError:  # as a file, the store has no kinds of its own
            return None


def join(timeout: timedelta) -> Rendezvous | None:
    """Joins the launch that the environment describes; None: this process is the only one.

    Raises:
        UserError: the address cannot be used (port taken or impossible, host unknown, another program there).
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return None
    rank = int(os.environ.get("RANK", "0"))
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
        address = os.environ.get(STORE) or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"no meeting point at {address}: {first_line}; choose another port, e.g. "
            "torchrun --rdzv-backend c10d --rdzv-endpoint localhost:0"
        ) from error
    return Rendezvous(store, rank, world, timeout)


def _address() -> Endpoint:
    """Where torchrun, or whoever started the ranks, says that they meet. Raises: UserError where it says none."""
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
    """Raises: UserError where the ranks can never meet there. A port that is taken shows when the store opens it."""
    if rank == 0 and _hosts_its_own():
        address.addresses()
    else:
        address.require_usable(hosted_here=False)


def on_one_machine() -> bool:
    """Whether all ranks run here, as torchrun says it or the address shows."""
    world, here = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE")
    return here == world if here else os.environ.get("MASTER_ADDR") in (LOOPBACK, "localhost")


def loopback_interface() -> str:
    """`lo`, or what this system calls it."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), "lo")


def _hosts_its_own() -> bool:
    """Whether the store is the first rank's, not torchrun's."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)


def _torchruns_store(rank: int, world: int, timeout: timedelta) -> dist.Store:
    """Where torchrun keeps one store over all restarts, with the old ranks' addresses, a part of it for each attempt.
    Otherwise each attempt has a store of its own, and a machine that came later has counted fewer attempts."""
    store: dist.Store = next(rendezvous("env://", rank, world, timeout=timeout))[0]
    if _hosts_its_own():
        return store
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _local_store(rank: int, world: int, timeout: timedelta) -> dist.Store:
    """A store that only this machine reaches; torch alone would listen on every interface."""
    port, listener = int(os.environ["MASTER_PORT"]), None
    if rank == 0:
        with socket.create_server((LOOPBACK, port)) as server:
            listener = server.detach()
    return dist.TCPStore(
        LOOPBACK, port, world, rank == 0, timeout, wait_for_workers=False, master_listen_fd=listener, use_libuv=True
    )


def _missing(ranks: list[int], timeout: timedelta) -> str:
    named = ", ".join(map(str, ranks[:20])) + (f" and {len(ranks) - 20} more" if len(ranks) > 20 else "")
    return (
        f"rank{'s' if len(ranks) > 1 else ''} {named} did not come within {timeout.total_seconds():g} s: see what they "
        "say themselves, or give --distributed-timeout-minutes more time"
    )
