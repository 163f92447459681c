"""Tokenizes text into token files (`megascratch preprocess`) on any number of processes and machines; resumable.

    inputs -> sources -> units --engine--> shards --in order--> merge --at the end--> {prefix}_{key}_document.*

The output does not depend on the number of processes. No file gets its final name before everything is written. The
finished shards of an interrupted run are kept in {prefix}.shards/, and the same command resumes from there.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from megascratch.config.errors import UserError
from megascratch.data.preprocess.encode import EncodeStep, Job, TokenizerInfo, vocabulary
from megascratch.data.preprocess.executors import Engine
from megascratch.data.preprocess.merge import Merge, publish
from megascratch.data.preprocess.output_shards import Summary, read_summary, writing
from megascratch.data.preprocess.run_folder import (
    Refused,
    RunSpec,
    has_progress,
    locked,
    plan_digest,
    remove,
    resume_or_start,
)
from megascratch.data.preprocess.work_units import (
    InputSpan,
    WorkUnit,
    file_digest,
    gather,
    spans_of,
    spool_stream,
)
from megascratch.data.text.bad_lines import BadReasons
from megascratch.data.text.documents import LINES
from megascratch.data.text.parquet import RowGroupSizes
from megascratch.data.text.sources import Source
from megascratch.data.tokens.token_files import token_dtype


class Output(NamedTuple):
    """Where the corpora are written, and how the work is divided."""

    prefix: str
    overwrite: bool
    shard: tuple[int, int] | None
    """(i, n): encode only every n-th unit from the i-th on; others do the rest and the merging."""
    shard_bytes: int
    cut_packed: bool
    """Whether this process unpacks large compressed files, so that many workers share one."""


class Watcher(Protocol):
    """Receives the progress of a run."""

    def step(self, step: EncodeStep) -> None:
        """More input was encoded."""

    def found(self, raw_bytes: int) -> None:
        """An earlier run had already encoded this much of the input."""

    def bad(self, line: str) -> None:
        """A bad line, as `file:line: reason`."""


class NothingToKeep(UserError):
    """Raised where the input must be changed first, so the shards of this run are useless."""


def preprocess(
    job: Job, sources: list[Source], output: Output, engine: Engine, watcher: Watcher
) -> Merge | None:
    """Encodes and merges; None: the output was already complete, or others do the rest (`output.shard`).

    Raises: UserError for bad input or a failed read or write; no file has a final name then.
    """
    tokenizer = vocabulary(job)
    folder = Path(job.folder)
    prefixes = key_prefixes(job, output.prefix)
    alone = output.shard is None
    with locked(folder, output.shard):
        try:
            plan = RunSpec(
                deciding=_deciding(job, sources, output, tokenizer),
                cut_packed=output.cut_packed,
                can_go_on=all(source.regular for source in sources),
            )
            active = resume_or_start(folder, plan, prefixes, output.overwrite, alone)
            if active is not None:
                output = output._replace(cut_packed=active.cut_packed)
                run = _PreprocessRun(job, sources, output, watcher, tokenizer, plan)
                if alone:
                    return run.encode_and_merge(engine)
                run.encode_only(engine)
            elif alone:
                publish(folder, prefixes, bad_lines_path(output.prefix))
                remove(folder)
            return None
        except BaseException as error:
            raise _ended(error, folder, alone) from error


def _ended(error: BaseException, folder: Path, alone: bool) -> BaseException:
    """The error, with what is kept of the run; the folder is removed unless it has finished shards."""
    if alone and (isinstance(error, NothingToKeep) or not has_progress(folder)):
        remove(folder)
    if isinstance(error, Refused) or not isinstance(error, UserError):
        return error
    kept = has_progress(folder) if folder.exists() else False
    left = "finished shards are kept: the same command resumes" if kept else "nothing written"
    return UserError(f"{error}; {left}")


def key_prefixes(job: Job, prefix: str) -> list[str]:
    """The prefix of each key's corpus."""
    level = "sentence" if job.sentences else "document"
    return [f"{prefix}_{key}_{level}" for key in job.reading.keys]


def bad_lines_path(prefix: str) -> str:
    """Path of the list of all bad lines, if there are any."""
    return f"{prefix}_bad_lines.txt"


def shard_folder(prefix: str) -> str:
    """The working folder of a run."""
    return f"{prefix}.shards"


def _deciding(
    job: Job, sources: list[Source], output: Output, tokenizer: TokenizerInfo
) -> dict[str, Any]:
    """Everything that determines the output's bytes and the cut into shards, by the names of the flags."""
    inputs = []
    for source in sources:
        inputs.append(
            [str(Path(source.path).absolute()), source.format, source.bytes, source.changed_ns]
        )
    keeps_ends = {"line-ends": "kept"} if job.reading.sample_by == "line" else {}
    return keeps_ends | {
        "input": inputs,
        "tokenizer": tokenizer.fingerprint,
        "json-keys": list(job.reading.keys),
        "append-eod": job.append_eod,
        "parse-special-tokens": job.parse_specials,
        "split-sentences": job.sentences,
        "keep-newlines": job.keep_newlines,
        "sample-by": job.reading.sample_by,
        "max-document-bytes": job.reading.longest,
        "shard-bytes": output.shard_bytes,
    }


class _PreprocessRun:
    """One run; the lock of its folder is held."""

    def __init__(
        self,
        job: Job,
        sources: list[Source],
        output: Output,
        watcher: Watcher,
        tokenizer: TokenizerInfo,
        plan: RunSpec,
    ):
        self._job = job
        self._sources = sources
        self._output = output
        self._watcher = watcher
        self._tokenizer = tokenizer
        self._plan = plan
        self._folder = Path(job.folder)
        self._finished: dict[int, Summary] = {}  # shards that wait for an earlier one, by number
        self._copies: dict[int, list[Path]] = {}  # plain copies of a pipe that a unit reads
        self._cut = 0  # units so far
        self._reasons = BadReasons()

    def encode_only(self, engine: Engine) -> None:
        """Encodes this process's share of the shards."""
        for _ in self._summaries(engine):
            pass

    def encode_and_merge(self, engine: Engine) -> Merge:
        """Encodes all missing shards and writes the output."""
        prefixes = key_prefixes(self._job, self._output.prefix)
        names = [source.path for source in self._sources]
        with writing(self._folder):
            merge = Merge(self._folder, names, len(prefixes), token_dtype(self._tokenizer.size))
            with closing(merge):
                for summary in self._summaries(engine):
                    self._finished[summary.number] = summary
                    while merge.shards in self._finished:
                        self._append(merge, self._finished.pop(merge.shards))
                assert merge.shards == self._cut, "an engine lost a unit"
                self._require_documents(merge)
                merge.finish([self._manifest(merge, key) for key in range(len(prefixes))])
            publish(self._folder, prefixes, bad_lines_path(self._output.prefix))
            remove(self._folder)
        return merge

    def _append(self, merge: Merge, summary: Summary) -> None:
        if self._job.strict and summary.bad:
            raise NothingToKeep(f"{merge.first_bad(summary)} (--strict)")
        for line in merge.append(summary):
            self._reasons.add(line)
            self._watcher.bad(line)

    def _require_documents(self, merge: Merge) -> None:
        if not any(counts.documents for counts in merge.counts):
            names = ", ".join(source.path for source in self._sources[:5])
            advice = self._reasons.advice(self._sources, "--json-keys")
            raise NothingToKeep(f"{names}: no document, {merge.bad:,} bad lines{advice}")

    def _summaries(self, engine: Engine) -> Iterator[Summary]:
        """The summaries of an earlier run's shards and of the engine's, in any order."""
        left: list[Summary] = []
        with closing(engine(self._job, self._missing(left))) as events:
            for event in events:
                yield from left
                left.clear()
                if isinstance(event, Summary):
                    for path in self._copies.pop(event.number, []):
                        path.unlink()
                    yield event
                else:
                    self._watcher.step(event)
        yield from left

    def _missing(self, left: list[Summary]) -> Iterator[WorkUnit]:
        """The units of this process that no earlier run has encoded; summaries of encoded units are added to `left`."""
        for unit in gather(self._spans(), self._output.shard_bytes):
            self._cut += 1
            copies = [Path(span.path) for span in unit.spans if span.path != span.name]
            summary = read_summary(self._folder, unit.number)
            if summary is None and self._is_mine(unit):
                self._copies[unit.number] = copies
                yield unit
                continue
            for path in copies:
                path.unlink()
            if summary is not None:
                left.append(summary)
                self._watcher.found(sum(span.raw_bytes for span in unit.spans))

    def _is_mine(self, unit: WorkUnit) -> bool:
        """Whether this process encodes a unit (`Output.shard`)."""
        if self._output.shard is None:
            return True
        own, count = self._output.shard
        return unit.number % count == own

    def _spans(self) -> Iterator[InputSpan]:
        size = self._output.shard_bytes
        reading = self._job.reading
        with RowGroupSizes() as sizes:
            for number, source in enumerate(self._sources):
                lines = source.format == "jsonl" or (
                    source.format == "text" and reading.sample_by in LINES
                )
                is_large = source.compression and source.bytes > size
                if not source.regular or (is_large and lines and self._output.cut_packed):
                    yield from spool_stream(
                        number, source, self._folder, size, reading.longest, lines
                    )
                else:
                    yield from spans_of(
                        number, source, size, reading.sample_by, reading.keys, sizes
                    )

    def _manifest(self, merge: Merge, key: int) -> dict[str, Any]:
        counts = merge.counts[key]
        tokenizer = self._tokenizer
        return {
            "tokenizer": {
                "kind": tokenizer.kind,
                "model": self._job.tokenizer.main_file,
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.size,
                "eod": tokenizer.eod,
            },
            "documents": counts.documents,
            "sequences": counts.sequences,
            "tokens": counts.tokens,
            "min_token": counts.min_token,
            "max_token": counts.max_token,
            "text_bytes": counts.text_bytes,
            "bad_lines": merge.bad,
            "bin_bytes": counts.tokens * token_dtype(tokenizer.size).itemsize,
            "json_key": self._job.reading.keys[key],
            "append_eod": self._job.append_eod,
            "parse_special_tokens": self._job.parse_specials,
            "split_sentences": self._job.sentences,
            "keep_newlines": self._job.keep_newlines,
            "sample_by": self._job.reading.sample_by,
            "max_document_bytes": self._job.reading.longest,
            "inputs": [self._input(merge, number) for number in range(len(self._sources))],
            "hashed_bytes": self._job.leaf_bytes,
            "plan": plan_digest(self._plan),
        }

    def _input(self, merge: Merge, number: int) -> dict[str, Any]:
        """Manifest entry of a source. `sha256`: over the sha256 of each `hashed_bytes` of it; None for a pipe."""
        source = self._sources[number]
        return {
            "path": source.path,
            "bytes": source.bytes,
            "rows": merge.rows[number],
            "sha256": file_digest(merge.digests[number]) if source.regular else None,
        }
