"""What `megascratch doctor` looks at on each rank: machines, axes and the model, and the report of all findings."""

import json
import socket
import time
from collections.abc import Sequence
from datetime import timedelta

import psutil
import torch

from megascratch.commands.print_config import holdings
from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.layout import Layout
from megascratch.config.load import Loaded
from megascratch.config.printable import size
from megascratch.config.resolve import BACKENDS, Device, Values
from megascratch.config.settings import Config, ParallelConfig
from megascratch.doctor.host import HostFinding, check_host
from megascratch.doctor.network import bandwidths, slow_groups
from megascratch.parallel import groups
from megascratch.parallel.groups import Timeouts
from megascratch.parallel.mesh import Mesh
from megascratch.parallel.pending import CommunicationError
from megascratch.parallel.rendezvous import Rendezvous, join
from megascratch.runtime.launch_environment import launch_environment
from megascratch.training.hardware import choose_device
from megascratch.training.start.once import code_digest
from megascratch.training.start.preflight import differences, rank_facts, where

MOST_SKEW = 1.0  # seconds between clocks


def examine(
    parallel: ParallelConfig,
    device: str | None,
    named: Values | None,
    loaded: Loaded | None,
    world: int,
    timeout: timedelta,
) -> list[HostFinding]:
    """Looks at everything, together with the other ranks. The first rank prints the report.

    Args:
        device: that of the settings.
        named: the settings, if any is given.
        loaded: where they come from.

    Raises: UserError for a rendezvous that fails.
    """
    rendezvous = join(timeout)
    findings = _machines(named, rendezvous)
    if not any(finding.state == "FAIL" for finding in findings):
        findings += _axes(parallel, device, rendezvous, timeout)
    if launch_environment().rank == 0:
        if loaded is not None:
            findings += _model(loaded, world)
        print(report(findings))
    if rendezvous is not None:
        rendezvous.leave()
    return findings


def _model(loaded: Loaded, world: int) -> list[HostFinding]:
    """The parameters of the model, and the memory that a rank of the first and of the last stage needs."""
    asked = loaded.config.training.device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind: Device = "cuda" if asked == "cuda" else "cpu"
    findings = []
    try:
        for held in holdings(loaded, world, kind):
            if held.stage == 0:
                findings.append(HostFinding("model", "ok", f"{held.model:,} parameters"))
            text = f"rank {held.rank}: {held.parameters:,} parameters, {size(held.memory)} for the tensors of a step"
            findings.append(_fits(text, held.memory, kind))
    except UserError as error:
        text = f"parameters and memory are not known: {str(error).splitlines()[0]}"
        findings.append(HostFinding("model", "ok", text))
    return findings


def _fits(text: str, needed: int, kind: Device) -> HostFinding:
    """Compares the memory that a rank needs with that of its device; ranks on CPUs share the memory of the machine."""
    if kind == "cuda" and not torch.cuda.is_available():
        return HostFinding("memory", "ok", text)  # another finding says so
    if kind == "cuda":
        there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    else:
        there = psutil.virtual_memory().total // (launch_environment().local_world_size or 1)
    text = f"{text}, {size(there)} there"
    if needed <= there:
        return HostFinding("memory", "ok", text)
    fix = "use more tensor or pipeline ranks, --use-distributed-optimizer, or --recompute-granularity full"
    return HostFinding("memory", "warn", text, fix)


def _machines(named: Values | None, rendezvous: Rendezvous | None) -> list[HostFinding]:
    """The findings of all processes, combined by the first rank; the same on every rank."""
    facts = rank_facts(named or flat(Config()), {}, code_digest(), {})
    mine = check_host(named, launch_environment().local_rank == 0)
    if rendezvous is None:
        return mine
    rendezvous.decide("begin", "", lambda texts: "")  # from here on all ranks run in step
    text = json.dumps([socket.gethostname(), time.time(), facts, mine])
    answer = rendezvous.decide("found", text, _together)
    return [HostFinding(*finding) for finding in json.loads(answer)]


def _together(texts: Sequence[str]) -> str:
    """Combines the JSON texts of all ranks: equal findings become one that names its hosts and ranks."""
    reports = [json.loads(text) for text in texts]
    by_finding: dict[tuple, dict[str, list[int]]] = {}
    for rank, (host, _, _, findings) in enumerate(reports):
        for finding in findings:
            by_finding.setdefault(tuple(finding), {}).setdefault(host, []).append(rank)
    combined = []
    for (about, state, text, fix), hosts in by_finding.items():
        places = ", ".join(where(host, ranks) for host, ranks in hosts.items())
        combined.append(HostFinding(about, state, f"{places}: {text}", fix))
    table = differences([(host, facts) for host, _, facts, _ in reports])
    if table:
        fix = "install the same packages and use the same settings on every rank"
        versions = HostFinding("versions", "FAIL", table, fix)
    else:
        versions = HostFinding(
            "versions", "ok", f"{len(reports)} ranks have the same versions, code and settings"
        )
    clocks = _clocks([(host, clock) for host, clock, _, _ in reports])
    return json.dumps([versions, *combined, clocks])


def _clocks(clocks: Sequence[tuple[str, float]]) -> HostFinding:
    """Compares the clocks of the ranks, which read them at about the same time: (host, seconds) of each."""
    fast, latest = max(clocks, key=lambda one: one[1])
    slow, earliest = min(clocks, key=lambda one: one[1])
    skew = latest - earliest
    if skew > MOST_SKEW:
        return HostFinding(
            "clocks", "warn", f"{fast} is {skew:.1f} s ahead of {slow}", "run an NTP client on both"
        )
    return HostFinding("clocks", "ok", f"within {skew:.2f} s")


def _axes(
    parallel: ParallelConfig,
    device_asked: str | None,
    rendezvous: Rendezvous | None,
    timeout: timedelta,
) -> list[HostFinding]:
    """Times a small collective over every axis."""
    if rendezvous is None:
        return []
    environment = launch_environment()
    device = choose_device(device_asked, environment.local_rank, parallel.distributed_backend)
    tp = parallel.tensor_model_parallel_size
    pp = parallel.pipeline_model_parallel_size
    copies = environment.world_size // Layout(tp, pp).ranks_of_copy
    layout = Layout(tp, pp, copies)
    try:
        backend = parallel.distributed_backend or BACKENDS[device.type]
        maker = groups.start(backend, device, rendezvous, Timeouts.equal(timeout))
        found = bandwidths(Mesh.build(layout, device, maker))
    except (CommunicationError, RuntimeError) as error:
        return [
            HostFinding(
                "axes",
                "FAIL",
                str(error).splitlines()[0],
                "check the network of the machine that is named",
            )
        ]
    finally:
        groups.stop()
    findings = []
    for axis in dict.fromkeys(group.axis for group in found):
        of_axis = [group for group in found if group.axis == axis]
        slowest = min(group.bytes_per_second for group in of_axis)
        size = len(of_axis[0].ranks)
        text = f"{axis}: {len(of_axis)} group(s) of {size}, all-reduce at {slowest / 1e6:,.0f} MB/s"
        findings.append(HostFinding("axes", "ok", text))
    for group in slow_groups(found):
        ranks = ", ".join(map(str, group.ranks))
        speed = f"{group.bytes_per_second / 1e6:,.0f} MB/s"
        text = (
            f"{group.axis} over ranks {ranks} runs at {speed}, a third of the other groups or less"
        )
        findings.append(HostFinding("axes", "warn", text, "check the network of its hosts"))
    return findings


def report(found: Sequence[HostFinding]) -> str:
    """One line for each finding, how to fix it below, and the totals."""
    lines = []
    for about, state, text, fix in found:
        first, *rest = text.splitlines()
        lines.append(f"{state:<5} {about:<9} {first}")
        lines += [" " * 16 + line for line in rest]
        if state != "ok":
            lines.append(" " * 16 + f"-> {fix}")
    failed = sum(finding.state == "FAIL" for finding in found)
    warnings = sum(finding.state == "warn" for finding in found)
    lines.append(
        f"{failed} failed, {warnings} warnings: a run {'cannot start' if failed else 'can start'}"
    )
    return "\n".join(lines)
