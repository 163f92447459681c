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
import platform
import socket
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import megascratch
from megascratch.config.errors import RanksDiffer, SettingError, UserError
from megascratch.config.resolve import Values
from megascratch.parallel.rendezvous import Rendezvous

LIBRARIES = ("torch", "numpy", "safetensors", "sentencepiece", "tokenizers", "gigatoken")
MAY_DIFFER = {"data_cache_path"}  # a folder of each machine
DIGESTS_DIFFER = "differ"  # the first verdict: now every rank sends its full facts
WIDEST = 48  # most characters of a value in the table


class RankReport(NamedTuple):
    """What one rank sends to the comparison."""

    facts: Mapping[str, str]
    problem: str = ""
    """Why the rank cannot start; '' if it can."""


def rank_facts(
    settings: Values, files: Mapping[str, Mapping[str, Any]], others: Mapping[str, str]
) -> dict[str, str]:
    """Everything that must be equal on all ranks, as short texts by name.

    Args:
        settings: setting -> value.
        files: digests of the corpora (`data.tokens.fingerprint`).
        others: further facts, such as fingerprints of the tokenizer and the checkpoint.
    """
    facts = {}
    for name, value in settings.items():
        if name not in MAY_DIFFER:
            facts[f"setting {name}"] = json.dumps(value)
    for library, version in versions().items():
        facts[f"version {library}"] = version
    facts["code megascratch"] = code_digest()
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


def code_digest() -> str:
    """sha256 (the first 16 hex digits) of every source and compiled file of the installed package."""
    root = Path(megascratch.__file__).parent
    files = [path for path in root.rglob("*") if path.suffix in (".py", ".so")]
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        header = f"{file.relative_to(root).as_posix()} {len(content)}\n"
        digest.update(header.encode() + content)
    return digest.hexdigest()[:16]


def check_ranks_agree(meeting: Rendezvous | None, found: RankReport) -> None:
    """Returns if all ranks report the same facts and no rank reports a problem.

    Raises: on all ranks, UserError (the problems, each with its host and ranks) or RanksDiffer (the table).
    """
    if meeting is None:
        if found.problem:
            raise UserError(found.problem)
        return
    host = socket.gethostname()
    facts = json.dumps(dict(found.facts), sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()
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
        lines_of_ranks = [set(problem.splitlines()) for _, problem, _ in reports]
        on_all_ranks = set.intersection(*lines_of_ranks)
        lines = []
        for (line, host), ranks in problems.items():
            if line in on_all_ranks:
                lines.append(line)
            else:
                lines.append(f"{where(host, ranks)}: {line}")
        return "\n".join(dict.fromkeys(lines))
    digests = {digest for _, _, digest in reports}
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
        same_column = (host, json.dumps(dict(facts), sort_keys=True))
        columns.setdefault(same_column, []).append(rank)
    header = ["what"]
    names: dict[str, None] = {}  # a set that keeps its order
    column_facts = []
    for (host, _), ranks in columns.items():
        header.append(where(host, ranks))
        _, facts = reports[ranks[0]]
        column_facts.append(facts)
        names |= dict.fromkeys(facts)
    rows = []
    for name in names:
        values = [facts.get(name) for facts in column_facts]
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
