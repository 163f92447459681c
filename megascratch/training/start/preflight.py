"""What each rank found on its own machine in; nothing out if all found the same, else one table of the differences on
all ranks, and nobody starts.

    what               node-a (ranks 0-3)   node-b (ranks 4-7)
    setting lr         0.001                0.002
    version torch      2.13.0               2.12.1

It works through the meeting's store, before any process group: so a rank that lacks a file, a device or a library can
still say so to the others. Texts travel as JSON; at first only digests, so that thousands of ranks cost little.
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
TELL_ALL = "differ"  # the first verdict: now every rank tells everything
WIDEST = 48  # characters of a value in the table


class RankReport(NamedTuple):
    """What a rank has to say."""

    facts: Mapping[str, str]
    problem: str = ""
    """Why it cannot start."""


def rank_facts(config: Config, files: Mapping[str, Mapping[str, Any]], others: Mapping[str, str]) -> dict[str, str]:
    """Everything that must be equal on all ranks, in short texts.

    Args:
        files: digests of the corpora (`data.tokens.fingerprint`).
        others: of the tokenizer, the checkpoint ...
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
    """Returns where all ranks found the same and nobody has a problem.

    Raises: on all ranks, UserError (the problems, each with its host and ranks) or RanksDiffer (the table).
    """
    if meeting is None:
        if found.problem:
            raise UserError(found.problem)
        return
    host = socket.gethostname()
    digest = hashlib.sha256(json.dumps(dict(found.facts), sort_keys=True).encode()).hexdigest()
    verdict = meeting.decide("short", json.dumps([host, found.problem, digest]), _first_verdict)
    if verdict == TELL_ALL:
        verdict = meeting.decide("long", json.dumps([host, dict(found.facts)]), _table)
        meeting.leave()
        raise RanksDiffer(verdict)
    if verdict:
        meeting.leave()
        raise SettingError(verdict)


def _first_verdict(texts: Sequence[str]) -> str:
    said = [json.loads(text) for text in texts]
    problems: dict[tuple[str, str], list[int]] = {}
    for rank, (host, problem, _) in enumerate(said):
        for line in problem.splitlines():
            problems.setdefault((line, host), []).append(rank)
    if problems:
        shared = set.intersection(*(set(problem.splitlines()) for _, problem, _ in said))
        lines = [
            line if line in shared else f"{where(host, ranks)}: {line}" for (line, host), ranks in problems.items()
        ]
        return "\n".join(dict.fromkeys(lines))
    return TELL_ALL if len({digest for *_, digest in said}) > 1 else ""


def _table(texts: Sequence[str]) -> str:
    return differences([json.loads(text) for text in texts])


def differences(said: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The table of (host, facts) of each rank; '' where all facts are equal."""
    columns: dict[tuple[str, str], list[int]] = {}
    for rank, (host, facts) in enumerate(said):
        columns.setdefault((host, json.dumps(dict(facts), sort_keys=True)), []).append(rank)
    told = [said[ranks[0]][1] for ranks in columns.values()]
    names = list(dict.fromkeys(name for one in told for name in one))
    rows = [
        [name, *(_short(one.get(name, "not there")) for one in told)]
        for name in names
        if len({one.get(name) for one in told}) > 1
    ]
    if not rows:
        return ""
    heads = ["what", *(where(host, ranks) for (host, _), ranks in columns.items())]
    wide = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in [heads, *rows]
    ]
    return "\n".join(["the ranks do not start alike; nothing was started:", *lines])


def where(host: str, ranks: Sequence[int]) -> str:
    """`node-a (ranks 0-3, 6)`."""
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
