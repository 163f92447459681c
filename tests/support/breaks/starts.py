"""Breaks of a start: what one rank reads for many, and what all ranks compare; each with the law that must notice."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from megascratch.checkpoint.chunk_reader import ChunkReader
from megascratch.data.tokens import fingerprint
from megascratch.data.tokens.file_digests import FileState
from megascratch.parallel import mesh
from megascratch.parallel.lines import RankLine
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.training.start import once, preflight
from tests.support import machines
from tests.support.simulated_starts import (
    a_larger_world_asks_for_no_more,
    a_rank_reads_the_rows_of_its_own_tensors,
)

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


def asked_in_pairs(self: Rendezvous, question: str, *args: Any) -> str:
    """A key for each pair of ranks."""
    for other in range(self.world):
        self.store.set(f"{question}/{self.rank}/{other}", "")
    return plain_decide(self, question, *args)


def axis_of_all_lines(self: Any, line: RankLine) -> Any:
    """Each rank makes the groups of all lines."""
    for ranks in line.every():
        if self.maker.rank not in ranks:
            self.maker.line(replace(line, mine=tuple(ranks)))
    return plain_axis(self, line)


def of_all_tensors(self: ChunkReader, names: Any) -> Any:
    return plain_chunks(self, self.manifest.tensors)


plain_state = FileState.of
plain_chunks = ChunkReader.chunks
plain_decide = Rendezvous.decide
plain_axis = mesh._Axes._axis
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
    "a store key for each pair of ranks": (
        [(Rendezvous, "decide", asked_in_pairs)],
        a_larger_world_asks_for_no_more,
    ),
    "each rank makes the groups of all lines": (
        [(mesh._Axes, "_axis", axis_of_all_lines)],
        a_larger_world_asks_for_no_more,
    ),
    "a rank reads the rows of all tensors": (
        [(ChunkReader, "chunks", of_all_tensors)],
        a_rank_reads_the_rows_of_its_own_tensors,
    ),
}
