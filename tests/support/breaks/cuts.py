"""Breaks of a corpus that `--split` cuts inside a document; the law of `cuts.py` must notice each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megascratch.data.samples import build
from megascratch.data.tokens.cut import CutCorpus
from tests.support.cuts import validation_reads_the_end_and_training_never_does

Law = Callable[[Path, Callable], None]


def apart(folder: Path, run: Callable) -> None:
    validation_reads_the_end_and_training_never_does(folder)


def from_the_beginning(self: CutCorpus, pieces: Any) -> Any:
    moved = plain_pieces(self, pieces)
    moved[:, 1] = pieces[:, 1]
    return moved


def whole_corpus(self: Any, reader: Any, split: str, name: str) -> build.Sequences:
    part = plain_part(self, reader, split, name)
    return part._replace(first=0)


def training_from_everything(self: Any, reader: Any, split: str, name: str) -> build.Sequences:
    part = plain_part(self, reader, split, name)
    return build.Sequences(reader, 0, len(reader)) if name == "train" else part


plain_pieces = CutCorpus.in_corpus
plain_part = build._Opener._cut_part

CUTS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "the rest of a cut document is read from its beginning": (
        [(CutCorpus, "in_corpus", from_the_beginning)],
        apart,
    ),
    "validation reads all of a document that is cut": (
        [(build._Opener, "_cut_part", whole_corpus)],
        apart,
    ),
    "training reads all of a document that is cut": (
        [(build._Opener, "_cut_part", training_from_everything)],
        apart,
    ),
}
