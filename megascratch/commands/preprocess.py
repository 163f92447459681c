"""`megascratch preprocess`: tokenizes text into {prefix}_{key}_document.bin/.idx/.json for each key.

The files are the same for any number of workers, and appear only when they are complete. A line without text is
reported with its file and number and skipped; with --strict it ends the run.
"""

import argparse
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import islice, repeat
from pathlib import Path

from megascratch.commands.input_output import (
    Named,
    of_corpora,
    print_next,
    require_free,
    require_no_input,
)
from megascratch.commands.new_tokenizer import require_trainable, train_or_reuse
from megascratch.commands.progress import Progress
from megascratch.config.errors import UserError
from megascratch.config.verbosity import QUIET, verbosity
from megascratch.data.preprocess.documents import ReadOptions
from megascratch.data.preprocess.encode import Job, forget_tokenizer, load_tokenizer
from megascratch.data.preprocess.executors import Engine, in_process, on_processes, on_ray
from megascratch.data.preprocess.run import (
    Output,
    bad_lines_path,
    key_prefixes,
    preprocess,
    shard_folder,
)
from megascratch.data.preprocess.work_units import LEAF_BYTES, shard_bytes
from megascratch.data.text.documents import read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sentences import language_code
from megascratch.data.text.sources import Source, find_sources
from megascratch.tokenizer import TokenizerSource
from megascratch.tokenizer.simple import NullTokenizer


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    forget_tokenizer()  # the file of an earlier run in this process may have changed
    _require(options)
    sources = find_sources(options.input, options.input_format)
    if options.find_optimal_num_workers:
        return measure_workers(options, sources)
    output = _output(options, sources)
    _require_sources(options, sources)
    job = _job(options, output)
    _require_no_input(options, job, sources)
    if options.train_tokenizer:
        if not Path(options.tokenizer_model).exists():
            require_free(key_prefixes(job, options.output_prefix), options.overwrite)
        train_or_reuse(options, sources)
    _require_tokenizer(job)
    total = None  # unknown
    if all(source.regular for source in sources):
        total = sum(source.bytes for source in sources)
    with Progress(options.log_interval, total) as progress:
        merge = preprocess(job, sources, output, _engine(options, sources), progress)
    _print_outputs(job, output, progress, wrote=merge is not None)
    if merge is not None:
        print(progress.summary(merge.counts, merge.bad))
    if output.shard is None:
        print_next(_training(options, key_prefixes(job, output.prefix)))
    return 0


def measure_workers(options: argparse.Namespace, sources: list[Source]) -> int:
    """Prints documents per second for each number of processes, on the first documents, fastest first."""
    key = options.json_keys[0]
    first = list(islice(read_records(sources, key), options.max_documents))
    speeds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "first.jsonl")
        with path.open("wb") as file:
            for record in first:
                if not isinstance(record.content, BadLine):
                    file.write(record.line() + b"\n")
        for workers in dict.fromkeys(options.workers_to_check):
            output = Path(folder, str(workers))
            output.mkdir()
            of_trial = {
                "find_optimal_num_workers": False,
                "input": [str(path)],
                "input_format": "jsonl",
                "output_prefix": str(output / "out"),
                "shard": None,
                "workers": workers,
            }
            began = time.monotonic()
            with redirect_stdout(io.StringIO()), verbosity(QUIET):
                main(argparse.Namespace(**vars(options) | of_trial))
            speeds[workers] = len(first) / (time.monotonic() - began)
            shutil.rmtree(output)
    ranked = sorted(speeds, key=lambda workers: speeds[workers], reverse=True)
    print(f"{len(first):,} documents, nothing written")
    for workers in ranked:
        print(f"{workers:>6} workers: {speeds[workers]:,.1f} documents/s")
    print(f"fastest: --workers {ranked[0]}")
    return 0


def _training(options: argparse.Namespace, prefixes: Sequence[str]) -> list[str]:
    """The command that trains on the output."""
    words = ["pretrain", "--data-path", *prefixes]
    words += TokenizerSource.of(options).words()
    if options.tokenizer_type in (NullTokenizer.kind, "TikTokenizer") and options.vocab_size:
        words += ["--vocab-size", str(options.vocab_size)]
    for source in options.imports:
        words += ["--import", source]
    return [*words, "--train-iters", "1000"]


def _require(options: argparse.Namespace) -> None:
    if len(set(options.json_keys)) < len(options.json_keys):
        raise UserError(
            f"--json-keys {' '.join(options.json_keys)}: each key makes one output, name each once"
        )
    if options.engine == "ray" and options.shard:
        raise UserError("--engine ray distributes the shards itself: remove --shard")
    if options.split_sentences:
        language_code(options.lang)


def _require_sources(options: argparse.Namespace, sources: list[Source]) -> None:
    if options.train_tokenizer:
        require_trainable(options, sources)
    for source in sources:
        if source.format == "text" and len(options.json_keys) > 1:
            raise UserError(
                f"{source.path} is plain text, which has no keys: give one in --json-keys, to name the output"
            )
        if options.shard and not source.regular:
            raise UserError(
                f"--shard needs files that every process can read; {source.path} is a pipe"
            )


def _require_no_input(options: argparse.Namespace, job: Job, sources: list[Source]) -> None:
    """Raises: UserError if a corpus or the list of bad lines would overwrite an input."""
    written = of_corpora("--output-prefix", key_prefixes(job, options.output_prefix))
    written.append(("--output-prefix", bad_lines_path(options.output_prefix)))
    read: list[Named] = [("--input", source.path) for source in sources]
    if options.train_tokenizer:
        written.append(("--tokenizer-model", options.tokenizer_model))
    else:
        read += TokenizerSource.of(options).files()
    require_no_input(written, read)


def _require_tokenizer(job: Job) -> None:
    tokenizer = load_tokenizer(job)
    if job.append_eod and tokenizer.eod is None:
        raise UserError(
            f"--append-eod: this {tokenizer.kind} has no end-of-document id; train it without --no-eod"
        )


def _output(options: argparse.Namespace, sources: list[Source]) -> Output:
    return Output(
        options.output_prefix,
        options.overwrite,
        _shard(options.shard) if options.shard else None,
        shard_bytes(sources, options.partitions, options.shard_bytes),
        cut_packed=options.engine == "local" and options.shard is None,
    )


def _shard(words: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", words)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {words} must be I/N with I from 0 to N - 1, for example 0/8")
    return int(match[1]), int(match[2])


def _job(options: argparse.Namespace, output: Output) -> Job:
    folder = shard_folder(options.output_prefix)
    return Job(
        TokenizerSource.of(options),
        ReadOptions(
            tuple(options.json_keys), options.sample_by, options.max_document_bytes, folder
        ),
        options.append_eod,
        options.parse_special_tokens,
        options.lang if options.split_sentences else None,
        options.keep_newlines,
        options.strict,
        folder,
        min(LEAF_BYTES, output.shard_bytes),
        tuple(options.imports),
    )


def _engine(options: argparse.Namespace, sources: list[Source]) -> Engine:
    """Parquet is always read in a child process, because a broken file can abort the reader."""
    if options.engine == "ray":
        return on_ray
    workers = options.workers or os.cpu_count() or 1
    alone = workers == 1 and all(source.format != "parquet" for source in sources)
    return in_process if alone else partial(on_processes, count=workers)


def _print_outputs(job: Job, output: Output, progress: Progress, wrote: bool) -> None:
    if output.shard:
        print(
            f"shard {output.shard[0]} of {output.shard[1]} is encoded; run again without --shard to merge all shards"
        )
        return
    for prefix, verb in zip(
        key_prefixes(job, output.prefix), repeat("wrote" if wrote else "complete:")
    ):
        print(f"{verb} {prefix}.bin, .idx and .json")
    progress.bad_lines.print_rest(listed_in=bad_lines_path(output.prefix))
