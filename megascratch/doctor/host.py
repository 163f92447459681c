"""Checks one machine before a run (files, network, device, disk) and suggests a fix for each problem."""

import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from megascratch.config.errors import UserError
from megascratch.config.resolve import Values
from megascratch.parallel.rendezvous import INTERFACES, on_one_machine
from megascratch.runtime.atomic_file import flush_to_disk
from megascratch.runtime.launch_environment import launch_environment
from megascratch.storage.path import Place, StoragePath, storage_path
from megascratch.storage.store import Store
from megascratch.training.hardware import choose_device
from megascratch.training.start.files import missing_files

PROBE_BYTES = 32 << 20
LEAST_FREE = 1 << 30
LEAST_SPEED = 50e6  # bytes per second


class HostFinding(NamedTuple):
    """The result of one check."""

    about: str
    state: str
    """ok, warn or FAIL."""
    text: str
    fix: str = ""


def check_host(settings: Values | None, first_here: bool) -> list[HostFinding]:
    """All checks that need no other rank. The disk is only checked by the first process of a machine.

    Args:
        settings: derived; None: none were given.
    """
    if settings is None:
        return [*_network(), *_device(None, None)]
    device = _device(settings["device"], settings["distributed_backend"])
    found = [*_files(settings), *_network(), *device]
    if not first_here:
        return found
    return found + _storage(storage_path(settings["save"]))


def _files(settings: Values) -> list[HostFinding]:
    problems = missing_files(settings)
    fix = "copy it here, mount its folder, or fix the path"
    if problems:
        return [HostFinding("files", "FAIL", problem, fix) for problem in problems]
    return [HostFinding("files", "ok", "every file that the settings name exists")]


def interfaces() -> dict[str, str]:
    """The network interfaces of this machine that have an IPv4 address: name -> address."""
    found: dict[str, str] = {}
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET:
                found.setdefault(name, address.address)  # the first one is the primary address
    return found


def _network() -> list[HostFinding]:
    here = interfaces()
    known = ", ".join(f"{name} {address}" for name, address in here.items()) or "none"
    named = {variable: os.environ[variable] for variable in INTERFACES if os.environ.get(variable)}
    wrong = []
    for variable, value in named.items():
        if value.startswith("^"):
            continue  # interfaces to exclude
        prefix = value.lstrip("=^").split(",")[0]
        if not any(name.startswith(prefix) for name in here):
            text = f"{variable} names {value}, this machine has {known}"
            wrong.append(HostFinding("network", "FAIL", text, f"export {variable}=NAME"))
    if wrong:
        return wrong
    if (
        not on_one_machine()
        and launch_environment().world_size > 1
        and "GLOO_SOCKET_IFNAME" not in named
    ):
        name = socket.gethostname()
        fix = f"export GLOO_SOCKET_IFNAME=NAME, one of: {known}"
        try:
            address = socket.gethostbyname(name)
        except OSError as error:
            return [
                HostFinding(
                    "network", "FAIL", f"the host name {name} cannot be resolved: {error}", fix
                )
            ]
        if address.startswith("127."):
            text = f"the host name {name} resolves to {address}: other machines cannot reach it"
            return [HostFinding("network", "FAIL", text, fix)]
    used = ", ".join(sorted(set(named.values()))) or "the interface of the host name"
    return [HostFinding("network", "ok", f"{known}; uses {used}")]


def _device(asked: str | None, backend: str | None) -> list[HostFinding]:
    try:
        device = choose_device(asked, launch_environment().local_rank, backend)
    except UserError as error:
        fix = "start at most as many processes as there are devices, or use --device cpu"
        return [HostFinding("device", "FAIL", str(error), fix)]
    return [HostFinding("device", "ok", device.type)]


def _storage(folder: Place) -> list[HostFinding]:
    return _disk(folder) if isinstance(folder, Path) else _store(folder)


def _store(folder: StoragePath) -> list[HostFinding]:
    """Whether checkpoints can be written to the store and read back, and how fast; leaves no object behind."""
    probe = (folder / f".doctor.{socket.gethostname()}.{os.getpid()}").url
    content = os.urandom(PROBE_BYTES)
    try:
        store = Store(folder.url)
        begin = time.perf_counter()
        store.put(probe, content)
        written = time.perf_counter()
        store.read(probe, 0, len(content))
        read = time.perf_counter()
        store.delete(probe)
    except UserError as error:
        fix = "check address, credentials and network, or choose another --save"
        return [HostFinding("store", "FAIL", str(error), fix)]
    megabytes = len(content) / 1e6
    text = f"{folder}: writes {megabytes / (written - begin):,.0f} MB/s, reads {megabytes / (read - written):,.0f} MB/s"
    return [HostFinding("store", "ok", text)]


def _disk(folder: Path) -> list[HostFinding]:
    """Free space and speed of the disk that checkpoints are written to; leaves no file behind."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    probe = there / f".doctor.{socket.gethostname()}.{os.getpid()}"
    try:
        status = os.statvfs(there)
        free = status.f_bavail * status.f_frsize
        if free < 2 * PROBE_BYTES:
            return [
                HostFinding(
                    "disk",
                    "FAIL",
                    f"{there} has {free / 2**20:,.0f} MiB free",
                    "make room, or choose another --save",
                )
            ]
        written = _timed_write(probe)
        read = _timed_read(probe)
    except OSError as error:
        return [
            HostFinding(
                "disk",
                "FAIL",
                f"{there} cannot be written: {error.strerror}",
                "choose another --output-dir or --save, or fix the permissions",
            )
        ]
    finally:
        probe.unlink(missing_ok=True)
    text = f"{there}: {free / 2**30:,.1f} GiB free, writes {written / 1e6:,.0f} MB/s, reads {read / 1e6:,.0f} MB/s"
    if free < LEAST_FREE:
        return [HostFinding("disk", "warn", text, "make room: a checkpoint may not fit")]
    if written < LEAST_SPEED:
        return [
            HostFinding("disk", "warn", text, "checkpoints will take long: save to a faster disk")
        ]
    return [HostFinding("disk", "ok", text)]


def _timed_write(probe: Path) -> float:
    """Bytes per second, including the time until they are on the disk."""
    block = os.urandom(1 << 20)
    begin = time.perf_counter()
    with probe.open("wb") as file:
        for _ in range(PROBE_BYTES >> 20):
            file.write(block)
        flush_to_disk(file)
    return PROBE_BYTES / (time.perf_counter() - begin)


def _timed_read(probe: Path) -> float:
    """Bytes per second, from the disk rather than from the page cache."""
    with probe.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        while file.read(1 << 20):
            pass
    return PROBE_BYTES / (time.perf_counter() - begin)
