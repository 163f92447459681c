"""`megascratch data blend-report` and `audit`: report which documents training with a given config reads, and when.

megascratch data blend-report --config my.yaml --samples 1000000
megascratch data audit --config my.yaml --steps 100:200 --output audit.csv
megascratch data audit --config my.yaml --steps 1:5000 --corpus web_text_document --document 17
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megascratch.config.batch_size import samples_asked_for, steps_and_samples
from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.laws import validate
from megascratch.config.layout import Layout
from megascratch.config.load import load_config, print_notices
from megascratch.config.printable import printable
from megascratch.config.resolve import Found, ResolvedTraining, Values, derive, resolve_derived
from megascratch.config.settings import DataConfig
from megascratch.data.inspect.audit import Use, audit
from megascratch.data.inspect.blend_report import BlendShare, blend_report
from megascratch.data.samples.build import open_splits
from megascratch.data.samples.dataset import Dataset
from megascratch.runtime.atomic_file import atomic_file, explain_write_errors

WIDTH = 100  # of a table without the corpus names, if the output is not a terminal
ANY_ID = 1 << 31  # a vocabulary size that allows every id: ids are not checked here


def report(options: argparse.Namespace, settings: Sequence[str]) -> int:
    """Reports samples, tokens and epochs of each corpus in a blend, and its largest deviation from its weight."""
    config, origins = load_config(settings)
    print_notices(origins)
    asked = samples = options.samples
    if samples is None:
        legal = _legal(flat(config), options.world_size)
        asked = samples_asked_for(legal)
        samples = steps_and_samples(legal)[1]
    found = blend_report(
        _training_set(config.data, config.training.seed, config.model.vocab_size, asked, samples),
        samples,
        config.data.seq_length,
    )
    if options.json:
        print(json.dumps([share._asdict() for share in found], indent=2))
    else:
        _print(found, samples)
    return 0


def record(options: argparse.Namespace, settings: Sequence[str]) -> int:
    """Writes which document is read in which sample at which step, as CSV or JSON lines."""
    first, last = _steps(options.steps)
    if options.document is not None and options.corpus is None:
        raise UserError(f"--document ({options.document}) needs --corpus, the prefix of its corpus")
    config, origins = load_config(settings)
    print_notices(origins)
    legal = _legal(flat(config), options.world_size)
    total, samples = steps_and_samples(legal)
    dataset = _training_set(
        config.data, legal.seed, config.model.vocab_size, samples_asked_for(legal), samples
    )
    if last > total:
        raise UserError(
            f"--steps {options.steps} ends after the last step of the run ({total}): use {first}:{total}"
        )
    uses = (use for use in audit(legal, dataset, first, last) if _is_asked_for(use, options))
    as_json = options.jsonl or Path(options.output or "").suffix == ".jsonl"
    with _output(options.output) as file:
        if as_json:
            file.writelines(json.dumps(use._asdict()) + "\n" for use in uses)
        else:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Use._fields)
            writer.writerows(uses)
    return 0


def _legal(given: Values, world_size: int | None) -> ResolvedTraining:
    """The length and batch size of a run, validated. Only the default batch size depends on the layout, the data order
    does not."""
    if world_size is None:
        sizes = ("global_batch_size", "step_batch_size_schedule", "data_parallel_size")
        if all(given[name] is None for name in sizes):
            raise UserError(
                "the size of a step is unknown: give --global-batch-size, or --world-size of the run"
            )
        world_size = Layout.of_values(given).world
    validate(given, world_size)
    found = Found(vocab_size=given["vocab_size"] or ANY_ID)
    return resolve_derived(derive(given, world_size), found).training


def _training_set(
    data: DataConfig, seed: int, vocab_size: int | None, asked: int, read: int
) -> Dataset:
    """The training set of a run that requests `asked` samples and reads `read` of them."""
    splits = open_splits(
        data,
        seed=seed,
        vocab_size=vocab_size or ANY_ID,
        train_samples=asked,
        samples_read=read,
    )
    train = splits.train
    if train is None:
        raise UserError("the training set is empty: --split must give it a proportion above 0")
    return train


def _steps(words: str) -> tuple[int, int]:
    """Parses 'A:B' or 'A' into the first and last step."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", words)
    if found:
        first = int(found[1])
        last = int(found[2] or found[1])
        if 1 <= first <= last:
            return first, last
    raise UserError(f"--steps {words} must be FIRST:LAST, counted from 1, for example 100:200")


def _is_asked_for(use: Use, options: argparse.Namespace) -> bool:
    is_corpus = options.corpus is None or use.corpus == options.corpus
    is_document = options.document is None or use.document == options.document
    return is_corpus and is_document


@contextmanager
def _output(path: str | None) -> Iterator[IO[str]]:
    """Standard output, or a temporary file that is renamed when it is complete."""
    if path is None:
        yield sys.stdout
        return
    with explain_write_errors(f"--output {path}"), atomic_file(path, "w") as file:
        yield file


def _print(found: Sequence[BlendShare], samples: int) -> None:
    table = Table(
        "from sample",
        "corpus",
        "weight",
        "samples",
        "tokens",
        "epochs",
        "largest error",
        title=f"the first {samples:,} samples",
        title_justify="left",
    )
    for share in found:
        begin, end = share.epochs
        table.add_row(
            f"{share.first:,}",
            Text(printable(share.corpus)),
            f"{share.weight:.4f}",
            f"{share.samples:,}",
            f"{share.tokens:,}",
            f"{begin:.2f} to {end:.2f}",
            f"{share.largest_error:.2f}",
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH + max(len(share.corpus) for share in found)
    console.print(table)
