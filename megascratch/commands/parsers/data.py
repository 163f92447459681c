"""The flags of `megascratch data`."""

import argparse

from megascratch.commands.parsers.base import Parser, any_setting
from megascratch.commands.parsers.shared import (
    add_json,
    add_overwrite,
    add_tokenizer,
    add_vocab_size,
    at_least,
)

COMMANDS = {
    "inspect": "Prints statistics of a corpus and decoded samples, and draws histograms of lengths and ids.",
    "validate": "Checks each corpus, its loss mask and index caches completely (format, digests, ids); "
    "exit code 1 for damage.",
    "record": "Writes the digests of a corpus from another tool next to it, so that later damage is found.",
    "merge": "Merges several corpora into one, in the order given; corpora in a folder are sorted by name.",
    "split": "Splits a corpus into several parts, between documents where it has enough of them; their order is kept.",
    "blend-report": "Reports samples, tokens and epochs of each corpus in a blend, and its largest deviation "
    "from its weight.",
    "audit": "Writes which document is read in which sample at which step, as CSV or JSON lines.",
}
EXAMPLES = {
    "inspect": (
        "megascratch data inspect corpus_text_document --tokenizer-model t.model \\\n"
        "    --samples 3 --output corpus.png",
    ),
    "validate": ("megascratch data validate corpus_text_document",),
    "record": ("megascratch data record corpus_from_elsewhere",),
    "merge": ("megascratch data merge --input shards/ more_text_document --output-prefix all",),
    "split": (
        "megascratch data split all --output-prefix all \\\n"
        "    --fractions 0.99 0.01 --names train valid",
    ),
    "blend-report": ("megascratch data blend-report --config my.yaml --samples 1000000",),
    "audit": (
        "megascratch data audit --config my.yaml --steps 100:200 --output audit.csv",
        "megascratch data audit --config my.yaml --steps 1:5000 \\\n"
        "    --corpus web_text_document --document 17",
    ),
}


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch data",
        "Inspects, validates, merges and splits .bin/.idx token files, and audits training data.",
        [*EXAMPLES["inspect"], *EXAMPLES["split"]],
    )
    add_command = made.add_commands(COMMANDS)
    parsers = {}
    for name, examples in EXAMPLES.items():
        settings = any_setting if name in ("blend-report", "audit") else None
        parsers[name] = add_command(name, examples=examples, settings_help=settings)
    _inspect_flags(parsers["inspect"])
    _validate_flags(parsers["validate"])
    _add_corpora(parsers["record"])
    add_overwrite(parsers["record"], "also if the corpus has changed since it was recorded")
    _merge_flags(parsers["merge"])
    _split_flags(parsers["split"])
    _report_flags(parsers["blend-report"])
    _audit_flags(parsers["audit"])
    return made


def _inspect_flags(made: Parser) -> None:
    add = made.add_argument
    add("prefix", metavar="PREFIX", help="a corpus: the common part of its .bin and .idx")
    _tokenizer_flags(made)
    add(
        "--samples",
        type=at_least(0),
        default=0,
        metavar="N",
        help="documents to show, at even distances (default: 0)",
    )
    add(
        "--most",
        type=at_least(0),
        default=20,
        metavar="N",
        help="most frequent ids to show (default: 20)",
    )
    add("--output", metavar="FILE", help="draw the histograms: .png, .svg or .pdf")
    add_json(made)
    add(
        "--data-cache-path",
        metavar="DIR",
        help="cache folder for a corpus in object storage (s3://...)",
    )


def _validate_flags(made: Parser) -> None:
    _add_corpora(made)
    _tokenizer_flags(made)
    made.add_argument(
        "--most", type=at_least(0), default=100, metavar="N", help="problems to list (default: 100)"
    )
    made.add_argument(
        "--data-cache-path",
        metavar="DIR",
        help="index caches to check (default: cache/ next to it)",
    )


def _merge_flags(made: Parser) -> None:
    add = made.add_argument
    add("--input", nargs="+", required=True, metavar="PREFIX", help="corpora, or folders of them")
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.bin/.idx/.json")
    add_overwrite(made)
    add(
        "--sort",
        action="store_true",
        help="merge in the order of the names instead of the order given",
    )
    add("--multimodal", action="store_true", help=argparse.SUPPRESS)


def _split_flags(made: Parser) -> None:
    add = made.add_argument
    add("prefix", metavar="PREFIX", help="a corpus: the common part of its .bin and .idx")
    add(
        "--output-prefix",
        required=True,
        metavar="PREFIX",
        help="writes PREFIX_NAME.bin/.idx/.json for each part",
    )
    add_overwrite(made, "replace existing corpora")
    how = made.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--fractions",
        nargs="+",
        type=float,
        metavar="F",
        help="fractions of the documents that add up to 1, or proportions as whole numbers",
    )
    how.add_argument(
        "--documents", nargs="+", type=int, metavar="N", help="number of documents in each part"
    )
    add("--names", nargs="+", metavar="NAME", help="names of the parts (default: 0 1 2 ...)")


def _report_flags(made: Parser) -> None:
    made.add_argument(
        "--samples",
        type=at_least(1),
        metavar="N",
        help="default: the length of the run (--train-iters or --train-samples)",
    )
    add_json(made)
    _add_world_size(made)


def _audit_flags(made: Parser) -> None:
    add = made.add_argument
    add("--steps", required=True, metavar="FIRST:LAST", help="first and last step, counted from 1")
    add("--corpus", metavar="PREFIX", help="only documents of this corpus")
    add("--document", type=int, metavar="D", help="only this document of --corpus")
    add("--output", metavar="FILE", help=".csv or .jsonl (default: CSV to standard output)")
    add("--jsonl", action="store_true", help="write a JSON object per line instead of CSV")
    _add_world_size(made)


def _add_world_size(made: Parser) -> None:
    made.add_argument(
        "--world-size",
        type=at_least(1),
        metavar="N",
        help="ranks of the run, if --global-batch-size is not given",
    )


def _add_corpora(made: Parser) -> None:
    made.add_argument(
        "prefix", nargs="+", metavar="PREFIX", help="corpora: the common part of .bin and .idx"
    )


def _tokenizer_flags(made: Parser) -> None:
    add_tokenizer(made)
    add_vocab_size(made, "size of the vocabulary (default: the tokenizer's)")
