"""Breaks of a start: what one rank reads for many, and what all ranks compare; each with the law that must notice."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from megascratch.data.tokens import fingerprint
from megascratch.data.tokens.file_digests import FileState
from megascratch.training.start import once, preflight
from tests.support import machines

Law = Callable[[Path, Callable], None]


@cache
def digest(change: str) -> Law:
    return lambda folder, run: machines.a_digest_is_taken_only_of_the_same_file(folder, change)


def codes(folder: Path, run: Callable) -> None:
    machines.machines_with_other_code_differ(folder)


def reads(folder: Path, run: Callable) -> None:
    machines.each_machine_reads_a_corpus_once(folder)


def state_without(*fields: str) -> classmethod:
    """The state of a file of which some fields are always 0."""

    def of(cls: type[FileState], path: Path) -> FileState:
        return plain_state(path)._replace(**dict.fromkeys(fields, 0))

    return classmethod(of)


def without_code(*args: Any) -> dict[str, str]:
    facts = plain_facts(*args)
    del facts["code megascratch"]
    return facts


plain_state = FileState.of
plain_facts = preflight.rank_facts

STARTS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "a digest is taken of a file of another size": (
        [(FileState, "of", state_without("size", "changed"))],
        digest("a longer file"),
    ),
    "a digest is taken of a file that was replaced": (
        [(FileState, "of", state_without("inode", "changed"))],
        digest("another file"),
    ),
    "the package is not compared": ([(machines, "rank_facts", without_code)], codes),
    "the package of one machine is taken for that of all": ([(once, "machine", str)], codes),
    "each rank reads the ids by itself": (
        [(fingerprint, "_sampled_once", lambda path, known: fingerprint.sampled(path))],
        reads,
    ),
}
