"""Preflight check: all ranks must have the same settings, data, library versions and checkpoint before a run starts. If
they differ, every rank stops with the same table of differences.

    what               node-a (ranks 0-3)   node-b (ranks 4-7)
    setting lr         0.001                0.002
    version torch      2.13.0               2.12.1

The ranks compare through the store of the rendezvous, before any process group starts, so a rank that lacks a file, a
device or a library can still report it to the others. Texts are sent as JSON. Digests are compared first, and the full
texts are only sent if the digests differ, so that thousands of ranks cost little.
"""

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megascratch.config.errors import RanksDiffer, SettingError, UserError
from megascratch.config.fields import flat
from megascratch.config.settings import Config
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.training.start.versions import code_digest, versions

MAY_DIFFER = {"data_cache_path"}  # a folder of each machine
DIGESTS_DIFFER = "differ"  # the first verdict: now every rank sends its full facts
WIDEST = 48  # most characters of a value in the table


class RankReport(NamedTuple):
    """What one rank sends to the comparison."""

    facts: Mapping[str, str]
    problem: str = ""
    """Why the rank cannot start; '' if it can."""


def rank_facts(config: Config, files: Mapping[str, Mapping[str, Any]], others: Mapping[str, str]) -> dict[str, str]:
    """Everything that must be equal on all ranks, as short texts by name.

    Args:
        files: digests of the corpora (`data.tokens.fingerprint`).
        others: further facts, such as fingerprints of the tokenizer and the checkpoint.
    """
    settings = {f"setting {name}": json.dumps(value) for name, value in flat(config).items() if name not in MAY_DIFFER}
    data = {
        f"file {prefix}{suffix}": ", ".join(f"{key} {str(value)[:16]}" for key, value in digest.items())
        for prefix, suffixes in files.items()
        for suffix, digest in suffixes.items()
    }
    packages = {f"version {name}": version for name, version in versions().items()}
    return settings | packages | {"code megascratch": code_digest()} | data | dict(others)


def check_ranks_agree(meeting: Rendezvous | None, found: RankReport) -> None:
    """Returns if all ranks report the same facts and no rank reports a problem.

    Raises: on all ranks, UserError (the problems, each with its host and ranks) or RanksDiffer (the table).
    """
    if meeting is None:
        if found.problem:
            raise UserError(found.problem)
        return
    host = socket.gethostname()
    digest = hashlib.sha256(json.dumps(dict(found.facts), sort_keys=True).encode()).hexdigest()
    verdict = meeting.decide("short", json.dumps([host, found.problem, digest]), _first_verdict)
    if verdict == DIGESTS_DIFFER:
        verdict = meeting.decide("long", json.dumps([host, dict(found.facts)]), _table)
        meeting.leave()
        raise RanksDiffer(verdict)
    if verdict:
        meeting.leave()
        raise SettingError(verdict)


def _first_verdict(texts: Sequence[str]) -> str:
    """The problems of all ranks, each with its host and ranks; DIGESTS_DIFFER; or '' if all ranks can start."""
    reports = [json.loads(text) for text in texts]
    problems: dict[tuple[str, str], list[int]] = {}
    for rank, (host, problem, _) in enumerate(reports):
        for line in problem.splitlines():
            problems.setdefault((line, host), []).append(rank)
    if problems:
        on_all_ranks = set.intersection(*(set(problem.splitlines()) for _, problem, _ in reports))
        lines = []
        for (line, host), ranks in problems.items():
            lines.append(line if line in on_all_ranks else f"{where(host, ranks)}: {line}")
        return "\n".join(dict.fromkeys(lines))
    digests = {digest for *_, digest in reports}
    return DIGESTS_DIFFER if len(digests) > 1 else ""


def _table(texts: Sequence[str]) -> str:
    return differences([json.loads(text) for text in texts])


def differences(reports: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The table of the facts that differ; '' if all are equal.

    Args:
        reports: (host, facts) of each rank. Ranks of a host with equal facts share a column.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for rank, (host, facts) in enumerate(reports):
        columns.setdefault((host, json.dumps(dict(facts), sort_keys=True)), []).append(rank)
    column_facts = [reports[ranks[0]][1] for ranks in columns.values()]
    names = dict.fromkeys(name for facts in column_facts for name in facts)
    rows = []
    for name in names:
        if len({facts.get(name) for facts in column_facts}) > 1:
            rows.append([name, *(_short(facts.get(name, "not there")) for facts in column_facts)])
    if not rows:
        return ""
    header = ["what", *(where(host, ranks) for (host, _), ranks in columns.items())]
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = ["the ranks differ; nothing was started:"]
    for row in table:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join(lines)


def where(host: str, ranks: Sequence[int]) -> str:
    """A host and its ranks as a text: `node-a (ranks 0-3, 6)`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    named = ", ".join("-".join(map(str, run)) for run in runs)
    return f"{host} (rank{'s' if len(ranks) > 1 else ''} {named})"


def _short(value: str) -> str:
    return value if len(value) <= WIDEST else value[: WIDEST - 3] + "..."
