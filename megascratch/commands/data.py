"""`megascratch data`: inspects, validates, merges and splits .bin/.idx token files, and audits training data. No torch.

megascratch data inspect corpus_text_document --tokenizer-model t.model --samples 3 --output corpus.png
megascratch data validate corpus_text_document
megascratch data record corpus_from_elsewhere
megascratch data merge --input shards/ more_text_document --output-prefix all
megascratch data split all --output-prefix all --fractions 0.99 0.01 --names train valid
megascratch data blend-report --config my.yaml --samples 1000000
megascratch data audit --config my.yaml --steps 100:200 --output audit.csv
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megascratch.commands import data_order
from megascratch.commands.input_output import of_corpora, require_free, require_no_input
from megascratch.config.errors import UserError
from megascratch.config.printable import printable
from megascratch.config.verbosity import note
from megascratch.data.inspect import merge_split
from megascratch.data.inspect.statistics import Statistics, binned, histograms, statistics
from megascratch.data.inspect.validate import problems
from megascratch.data.inspect.validate import record as record_digests
from megascratch.data.samples.build import cut_notice
from megascratch.data.tokens.cut import CutCorpus
from megascratch.data.tokens.index_cache import damaged_caches
from megascratch.data.tokens.manifest import read_manifest
from megascratch.data.tokens.remote import is_remote, open_corpus
from megascratch.data.tokens.token_files import TokenReader, bin_path
from megascratch.tokenizer import Tokenizer, TokenizerSource

PICTURES = (".png", ".svg", ".pdf")
# these accept all settings as flags
READ_A_CONFIG = {
    "blend-report": data_order.report,
    "audit": data_order.record,
}
WIDTH = 120  # of a table if the output is not a terminal
SHOWN = 400  # characters of a decoded sample that are printed


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    if options.name in READ_A_CONFIG:
        return READ_A_CONFIG[options.name](options, options.settings)
    commands = {
        "inspect": inspect,
        "validate": validate,
        "record": record,
        "merge": merge,
        "split": split,
    }
    return commands[options.name](options)


# ---- commands --------------------------------------------------------------------------------------------------


def inspect(options: argparse.Namespace) -> int:
    """Prints statistics of a corpus and decoded samples, and draws histograms of lengths and ids."""
    if options.output and Path(options.output).suffix not in PICTURES:
        raise UserError(f"--output ({options.output}) must end with {', '.join(PICTURES)}")
    reader = open_corpus(options.prefix, options.data_cache_path)
    tokenizer = _tokenizer(options)
    manifest = read_manifest(reader) or {}
    recorded = manifest.get("tokenizer") or {}
    eod: int | None = tokenizer.eod if tokenizer else recorded.get("eod")
    vocab_size: int | None = tokenizer.vocab_size if tokenizer else recorded.get("vocab_size")
    found = statistics(reader, eod)
    samples = _samples(reader, options.samples, tokenizer)
    if options.output:
        _draw(
            found,
            f"{reader.prefix}: {found.documents:,} documents, {found.tokens:,} tokens",
            options.output,
        )
    if options.json:
        figures = _record(reader, found, vocab_size, options.most)
        print(json.dumps(figures | {"samples": samples}, indent=2))
        return 0
    _print_statistics(reader, found, vocab_size, tokenizer, options.most)
    for sample in samples:
        text = sample.get("text", " ".join(map(str, sample["ids"])))
        print(
            f"\ndocument {sample['document']} ({sample['tokens']:,} tokens): {printable(repr(text))}"
        )
    return 0


def validate(options: argparse.Namespace) -> int:
    """Checks each corpus, its loss mask and index caches completely (format, digests, ids); exit code 1 for damage."""
    tokenizer = _tokenizer(options)
    vocab_size = tokenizer.vocab_size if tokenizer else options.vocab_size
    fingerprint = tokenizer.fingerprint if tokenizer else None
    damaged = False
    for prefix in map(_on_this_machine, options.prefix):
        found = chain(
            problems(prefix, vocab_size, fingerprint),
            _damaged_caches(prefix, options.data_cache_path),
        )
        shown = list(islice(found, options.most))
        for problem in shown:
            print(printable(problem))
        more = sum(1 for _ in found)
        if more:
            print(f"{printable(prefix)}: {more:,} more problems (--most {options.most})")
        elif not shown:
            reader = TokenReader(prefix)
            name = printable(prefix)
            line = (
                f"{name}: valid; {len(reader.documents) - 1:,} documents, {reader.tokens:,} tokens"
            )
            if not reader.digests:
                line += (
                    f"; no digests, so damage may go unnoticed: run megascratch data record {name}"
                )
            print(line)
        damaged = damaged or bool(shown or more)
    return 1 if damaged else 0


def record(options: argparse.Namespace) -> int:
    """Writes the digests of a corpus from another tool next to it, so that later damage is found."""
    for prefix in map(_on_this_machine, options.prefix):
        written = record_digests(prefix, options.overwrite)
        if written:
            print(f"wrote {', '.join(map(str, written))}")
        else:
            print(f"{prefix}: already recorded and unchanged")
    return 0


def merge(options: argparse.Namespace) -> int:
    """Merges several corpora into one, in the order given; corpora in a folder are sorted by name."""
    if options.multimodal:
        raise UserError("--multimodal is not supported: merge corpora without a mode per sequence")
    prefixes = [prefix for word in options.input for prefix in _prefixes(word)]
    if options.sort:
        prefixes.sort()
    repeated = {prefix for prefix in prefixes if prefixes.count(prefix) > 1}
    if repeated:
        raise UserError(
            f"--input names {', '.join(sorted(repeated))} more than once: name each corpus once"
        )
    require_no_input(
        of_corpora("--output-prefix", [options.output_prefix]), of_corpora("--input", prefixes)
    )
    require_free([options.output_prefix], options.overwrite)
    readers = [open_corpus(prefix, None) for prefix in prefixes]
    _report([merge_split.merge(readers, options.output_prefix)])
    return 0


def split(options: argparse.Namespace) -> int:
    """Splits a corpus into several parts, between documents where it has enough of them; their order is kept."""
    whole = open_corpus(_on_this_machine(options.prefix), None)
    if options.fractions:
        reader, counts = merge_split.divide(whole, options.fractions)
    else:
        reader = whole
        counts = merge_split.check_counts(options.documents, len(reader.documents) - 1)
    names = options.names or [str(number) for number in range(len(counts))]
    if len(names) != len(counts) or len(set(names)) < len(names):
        raise UserError(
            f"--names {' '.join(names)}: {len(counts)} parts need {len(counts)} different names"
        )
    prefixes = [f"{options.output_prefix}_{name}" for name in names]
    require_no_input(
        of_corpora("--output-prefix", prefixes),
        of_corpora("the corpus that is split", [options.prefix]),
    )
    require_free(prefixes, options.overwrite)
    if isinstance(reader, CutCorpus):
        note(f"notice: {printable(cut_notice(reader, '--fractions'))}")
    _report(merge_split.split(reader, prefixes, counts))
    return 0


# ---- parts -----------------------------------------------------------------------------------------------------


def _tokenizer(options: argparse.Namespace) -> Tokenizer | None:
    source = TokenizerSource.of(options)
    return source.load() if source.is_named else None


def _prefixes(word: str) -> list[str]:
    """The prefix itself, or every pair in a folder. Raises: UserError for a pair without .bin or .idx."""
    folder = Path(_on_this_machine(word))
    if bin_path(word).exists() or not folder.is_dir():
        return [word]
    with_bin = {str(path).removesuffix(".bin") for path in folder.glob("*.bin")}
    with_idx = {str(path).removesuffix(".idx") for path in folder.glob("*.idx")}
    alone = sorted(with_bin ^ with_idx)
    if alone:
        raise UserError(
            f"{alone[0]} has only one of .bin and .idx: add the other file, or remove this one"
        )
    if not with_bin:
        raise UserError(f"{word} contains no .bin/.idx pair")
    return sorted(with_bin)


def _damaged_caches(prefix: str, folder: str | None) -> Iterator[str]:
    """Problems of the index caches that a run with this corpus would use."""
    caches = Path(folder) if folder else Path(prefix).parent / "cache"
    for home in damaged_caches(caches):
        yield f"index cache {home} is damaged: remove it, the next run builds it again"


def _on_this_machine(prefix: str) -> str:
    if is_remote(prefix):
        raise UserError(
            f"{prefix} is in object storage, which only inspect and training can read: copy it to this machine"
        )
    return prefix


def _report(written: Sequence[merge_split.MergeSummary]) -> None:
    for corpus in written:
        print(
            f"wrote {corpus.prefix}.bin, .idx and .json: {corpus.documents:,} documents, "
            f"{corpus.sequences:,} sequences, {corpus.tokens:,} tokens"
        )


def _samples(reader: TokenReader, wanted: int, tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """Documents at even distances, starting with the first; long ones are truncated."""
    documents = len(reader.documents) - 1
    samples: list[dict[str, Any]] = []
    if not documents:
        return samples
    for number in sorted({index * documents // wanted for index in range(wanted)}):
        first, stop = reader.documents[number : number + 2].tolist()
        ids: list[int] = []
        for sequence in range(first, stop):
            ids += reader.get(sequence)[: SHOWN - len(ids)].tolist()
        sample = {"document": number, "tokens": int(reader.lengths[first:stop].sum()), "ids": ids}
        if tokenizer:
            sample["text"] = tokenizer.decode(ids)[:SHOWN]
        samples.append(sample)
    return samples


def _record(
    reader: TokenReader, found: Statistics, vocab_size: int | None, most: int
) -> dict[str, Any]:
    return {
        "prefix": reader.prefix,
        "dtype": reader.dtype.name,
        "bin_bytes": reader.bin_bytes,
        "documents": found.documents,
        "sequences": found.sequences,
        "tokens": found.tokens,
        "document_length_quantiles": {
            f"{share:g}": length for share, length in found.quantiles.items()
        },
        "document_length_histogram": binned(found.lengths),
        "eod": found.eod,
        "documents_with_eod": found.documents_with_eod,
        "vocab_size": vocab_size,
        "ids_used": found.ids_used,
        "ids_outside": found.ids_outside,
        "most_frequent": found.most_frequent(most),
    }


def _print_statistics(
    reader: TokenReader,
    found: Statistics,
    vocab_size: int | None,
    tokenizer: Tokenizer | None,
    most: int,
) -> None:
    print(
        f"{printable(reader.prefix)}: {found.documents:,} documents, {found.sequences:,} sequences, "
        f"{found.tokens:,} tokens, {reader.dtype.name}, {reader.bin_bytes:,} bytes"
    )
    quantiles = ", ".join(f"{share:.0%} {length:,}" for share, length in found.quantiles.items())
    print(f"tokens per document: {quantiles}")
    if found.eod is not None:
        print(
            f"end of document (id {found.eod}): at the end of {found.documents_with_eod:,} documents"
        )
    share = f" of {vocab_size:,} ({found.ids_used / vocab_size:.1%})" if vocab_size else ""
    print(f"ids used: {found.ids_used:,}{share}")
    if found.ids_outside:
        print(
            f"ids outside every vocabulary: {found.ids_outside:,}; see megascratch data validate "
            f"{printable(reader.prefix)}"
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_lengths_table(found), _ids_table(found, tokenizer, most), sep="\n")


def _lengths_table(found: Statistics) -> Table:
    table = Table("tokens", "documents", "", title="length of documents", title_justify="left")
    rows = binned(found.lengths)
    highest = max(count for _, _, count in rows)
    for low, high, count in rows:
        name = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        table.add_row(name, f"{count:,}", "█" * round(40 * count / max(highest, 1)))
    return table


def _ids_table(found: Statistics, tokenizer: Tokenizer | None, most: int) -> Table:
    table = Table("id", "times", "share", title="most frequent", title_justify="left")
    if tokenizer:
        table.add_column("text")
    for token, times in found.most_frequent(most):
        cells = [str(token), f"{times:,}", f"{times / found.tokens:.2%}"]
        if tokenizer:
            text = printable(repr(tokenizer.decode([token])))
            cells.append(text.replace("[", r"\["))
        table.add_row(*cells)
    return table


def _draw(found: Statistics, title: str, path: str) -> None:
    try:
        histograms(found, title).savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}") from error
