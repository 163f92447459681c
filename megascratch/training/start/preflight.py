"""Preflight check: all ranks must have the same settings, data, library versions and checkpoint before a run starts. If
they differ, every rank stops with the same table of differences.

    what               node-a (ranks 0-3)   node-b (ranks 4-7)
    setting lr         0.001                0.002
    version torch      2.13.0               2.12.1

The ranks compare through the store of the rendezvous, before any process group starts, so a rank that lacks a file, a
device or a library can still report it to the others. Texts are sent as JSON. Digests are compared first. Only if they
differ, one rank of each kind sends its full facts, so that what is sent for a rank does not grow with their number.
"""

import hashlib
import json
import platform
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from megascratch.config.errors import RanksDiffer, SettingError, UserError
from megascratch.config.resolve import Values
from megascratch.parallel.rendezvous import Rendezvous

LIBRARIES = ("torch", "numpy", "safetensors", "sentencepiece", "tokenizers", "gigatoken")
MAY_DIFFER = {"data_cache_path"}  # a folder of each machine
DIGESTS_DIFFER = "differ "  # the first verdict; the ranks that follow send their full facts
WIDEST = 48  # most characters of a value in the table
MOST_COLUMNS = 8  # of the table, and hosts that are named with one problem
MOST_PROBLEMS = 64  # reported to all ranks


class RankReport(NamedTuple):
    """What one rank sends to the comparison."""

    facts: Mapping[str, str]
    problem: str = ""
    """Why the rank cannot start; '' if it can."""


def rank_facts(
    settings: Values, files: Mapping[str, Mapping[str, Any]], code: str, others: Mapping[str, str]
) -> dict[str, str]:
    """Everything that must be equal on all ranks, as short texts by name.

    Args:
        settings: setting -> value.
        files: digests of the corpora (`data.tokens.fingerprint`).
        code: digest of the package (`start.once.code_digest`).
        others: further facts, such as fingerprints of the tokenizer and the checkpoint.
    """
    facts = {}
    for name, value in settings.items():
        if name not in MAY_DIFFER:
            facts[f"setting {name}"] = json.dumps(value)
    for library, version in versions().items():
        facts[f"version {library}"] = version
    facts["code megascratch"] = code
    for prefix, suffixes in files.items():
        for suffix, digest in suffixes.items():
            parts = [f"{key} {str(value)[:16]}" for key, value in digest.items()]
            facts[f"file {prefix}{suffix}"] = ", ".join(parts)
    return facts | dict(others)


def versions() -> dict[str, str]:
    """Version by library, including Python and this package; 'none' for a library that is not installed."""
    found = {"python": platform.python_version()}
    for library in ("megascratch", *LIBRARIES):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "none"
    return found


def check_ranks_agree(meeting: Rendezvous | None, found: RankReport) -> None:
    """Returns if all ranks report the same facts and no rank reports a problem.

    Raises: on all ranks, UserError (the problems, each with its host and ranks) or RanksDiffer (the table).
    """
    if meeting is None:
        if found.problem:
            raise UserError(found.problem)
        return
    facts = json.dumps(dict(found.facts), sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()
    short = json.dumps([socket.gethostname(), found.problem, digest])
    comparison = _Comparison()  # the first rank's is used
    verdict = meeting.decide("short", short, comparison.first_verdict)
    if verdict.startswith(DIGESTS_DIFFER):
        asked = json.loads(verdict.removeprefix(DIGESTS_DIFFER))
        long = facts if meeting.rank in asked else ""
        verdict = meeting.decide("long", long, comparison.table)
        meeting.leave()
        raise RanksDiffer(verdict)
    if verdict:
        meeting.leave()
        raise SettingError(verdict)


class _Comparison:
    """Compares what the ranks report, on the first rank."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, list[int]]] = {}
        """Digest of the facts -> host -> the ranks that have it."""

    def first_verdict(self, texts: Sequence[str]) -> str:
        """The problems of all ranks; or DIGESTS_DIFFER and the ranks whose facts are needed: one of each kind that the
        table shows; or '' if all ranks can start."""
        reports = [json.loads(text) for text in texts]
        if any(problem for _, problem, _ in reports):
            return _problems([(host, problem.splitlines()) for host, problem, _ in reports])
        for rank, (host, _, digest) in enumerate(reports):
            self.kinds.setdefault(digest, {}).setdefault(host, []).append(rank)
        if len(self.kinds) == 1:
            return ""
        return DIGESTS_DIFFER + json.dumps(self._first_ranks())

    def table(self, texts: Sequence[str]) -> str:
        """The table of differences, from the facts of the ranks that were asked for them."""
        facts = {}
        for digest, rank in zip(self.kinds, self._first_ranks(), strict=False):
            facts[digest] = json.loads(texts[rank])
        columns = []
        for digest, hosts in self.kinds.items():
            for host, ranks in hosts.items():
                columns.append((ranks[0], where(host, ranks), digest))
        if len(columns) > MOST_COLUMNS:
            columns = []
            for digest, hosts in self.kinds.items():
                (host, ranks), *others = hosts.items()
                columns.append((ranks[0], _and_more(where(host, ranks), len(others)), digest))
        shown = sorted(columns)[:MOST_COLUMNS]
        text = _differences([(header, facts[digest]) for _, header, digest in shown])
        if len(columns) > MOST_COLUMNS:
            text += (
                f"\nand {len(columns) - MOST_COLUMNS} more kinds of ranks, each with other values"
            )
        return text

    def _first_ranks(self) -> list[int]:
        """The first rank of each of the first kinds, which are in the order of these ranks."""
        firsts = []
        for hosts in self.kinds.values():
            firsts.append(next(iter(hosts.values()))[0])
        return firsts[:MOST_COLUMNS]


def _problems(reports: Sequence[tuple[str, list[str]]]) -> str:
    """The problems of all ranks, each with its host and ranks, or without if all ranks have it.

    Args:
        reports: host and problems of each rank.
    """
    ranks_of: dict[tuple[str, str], list[int]] = {}
    for rank, (host, lines) in enumerate(reports):
        for line in lines:
            ranks_of.setdefault((line, host), []).append(rank)
    on_all_ranks = set.intersection(*[set(lines) for _, lines in reports])
    told = []
    hosts_of: Counter[str] = Counter()
    for (line, host), ranks in ranks_of.items():
        hosts_of[line] += 1
        if line in on_all_ranks:
            told.append(line)
        elif hosts_of[line] <= MOST_COLUMNS:
            told.append(f"{where(host, ranks)}: {line}")
    for line, hosts in hosts_of.items():
        if hosts > MOST_COLUMNS and line not in on_all_ranks:
            told.append(f"{hosts - MOST_COLUMNS} more hosts: {line}")
    told = list(dict.fromkeys(told))
    if len(told) > MOST_PROBLEMS:
        told[MOST_PROBLEMS:] = [f"and {len(told) - MOST_PROBLEMS} more problems of other ranks"]
    return "\n".join(told)


def _and_more(host: str, others: int) -> str:
    if not others:
        return host
    return f"{host} and {others} more host{'s' if others > 1 else ''}"


def differences(reports: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The table of the facts that differ; '' if all are equal.

    Args:
        reports: (host, facts) of each rank. Ranks of a host with equal facts share a column.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for rank, (host, facts) in enumerate(reports):
        same_column = (host, json.dumps(dict(facts), sort_keys=True))
        columns.setdefault(same_column, []).append(rank)
    named = []
    for (host, _), ranks in columns.items():
        named.append((where(host, ranks), reports[ranks[0]][1]))
    return _differences(named)


def _differences(columns: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The table of the facts that differ; '' if all are equal.

    Args:
        columns: header and facts of each column.
    """
    header = ["what"]
    names: dict[str, None] = {}  # a set that keeps its order
    for title, facts in columns:
        header.append(title)
        names |= dict.fromkeys(facts)
    rows = []
    for name in names:
        values = [facts.get(name) for _, facts in columns]
        if len(set(values)) > 1:
            cells = ["not there" if value is None else _short(value) for value in values]
            rows.append([name, *cells])
    if not rows:
        return ""
    table = [header, *rows]
    widths = []
    for column in zip(*table, strict=True):
        widths.append(max(map(len, column)))
    lines = ["the ranks differ; nothing was started:"]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def where(host: str, ranks: Sequence[int]) -> str:
    """A host and its ranks as a text: `node-a (ranks 0-3, 6)`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    named = ["-".join(map(str, run)) for run in runs]
    plural = "s" if len(ranks) > 1 else ""
    return f"{host} (rank{plural} {', '.join(named)})"


def _short(value: str) -> str:
    return value if len(value) <= WIDEST else value[: WIDEST - 3] + "..."
