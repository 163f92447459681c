"""The flags of `megascratch preprocess`."""

import argparse
from collections.abc import Sequence

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.megatron_preprocess import translated
from megascratch.commands.parsers.shared import (
    add_input,
    add_overwrite,
    add_parse_special_tokens,
    add_tokenizer,
    add_vocab_size,
    at_least,
)
from megascratch.data.text.jsonl import LONGEST_LINE

TRAINED = ("char", "bpe", "sentencepiece")
"""Tokenizers that can be trained on the way."""

EXAMPLES = (
    "megascratch preprocess --input input.txt --output-prefix shakespeare \\\n"
    "    --train-tokenizer char --tokenizer-model chars.json",
    "megascratch preprocess --input corpus/ --output-prefix data \\\n"
    "    --tokenizer-model tokenizer.json --append-eod",
    "megascratch preprocess --input web.jsonl.gz --json-keys title text \\\n"
    "    --output-prefix web --tokenizer-model tokenizer.model --workers 8",
)


class PreprocessParser(Parser):
    """The flags of the command, or with --flags-of megatron those of Megatron-LM's tools/preprocess_data.py."""

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options. Raises: UserError as the parser of any command."""
        if list(argv[:2]) == ["--flags-of", "megatron"]:
            argv = translated(argv[2:])
        return super().read(argv)


def parser() -> Parser:
    """The parser of the command."""
    made = PreprocessParser(
        "megascratch preprocess",
        "Turns text (JSONL, plain, Parquet) into token files (.bin/.idx).",
        EXAMPLES,
        "The files are the same for any number of workers, and appear only when they are complete.",
    )
    _add_input(made)
    _add_output(made)
    _add_work(made)
    return made


def _add_input(made: Parser) -> None:
    group = made.add_argument_group("input")
    add_input(group)
    add = group.add_argument
    add(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys of the text; each becomes one output (default: text)",
    )
    add(
        "--max-document-bytes",
        type=at_least(1),
        default=LONGEST_LINE,
        metavar="BYTES",
        help=f"a longer line, row or text file is skipped as a bad line (default: {LONGEST_LINE:,})",
    )
    add("--strict", action="store_true", help="stop at the first bad line and write nothing")
    add(
        "--split-sentences",
        action="store_true",
        help="make each sentence a sequence; writes PREFIX_KEY_sentence",
    )
    add(
        "--lang",
        default="english",
        metavar="NAME",
        help="language for --split-sentences, a name or a code (default: english)",
    )
    add("--keep-newlines", action="store_true", help="keep the white space around sentences")
    add("--flags-of", choices=("megatron",), help=argparse.SUPPRESS)  # see tools/preprocess_data.py


def _add_output(made: Parser) -> None:
    group = made.add_argument_group("output")
    group.add_argument(
        "--output-prefix",
        required=True,
        metavar="PREFIX",
        help="writes PREFIX_KEY_document.bin/.idx/.json",
    )
    add_overwrite(group, "replace output that was made from other input or with other options")
    add_tokenizer(group)
    group.add_argument(
        "--train-tokenizer",
        choices=TRAINED,
        help="first train a tokenizer on this text and write it to --tokenizer-model, unless that file exists",
    )
    add_vocab_size(
        group, "number of ids of --train-tokenizer bpe and sentencepiece, and of NullTokenizer"
    )
    group.add_argument(
        "--append-eod",
        action="store_true",
        help="append the end-of-document id to every document",
    )
    add_parse_special_tokens(group)


def _add_work(made: Parser) -> None:
    add = made.add_argument_group("work").add_argument
    add("--workers", type=at_least(1), metavar="N", help="processes (default: one per core)")
    add(
        "--find-optimal-num-workers",
        action="store_true",
        help="only measure each number of --workers-to-check on the first --max-documents",
    )
    add(
        "--workers-to-check",
        nargs="+",
        type=at_least(1),
        default=[16, 32, 64],
        help=argparse.SUPPRESS,
    )
    add("--max-documents", type=at_least(1), default=100_000, help=argparse.SUPPRESS)
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: run on a Ray cluster (RAY_ADDRESS, else a local one)",
    )
    add(
        "--shard",
        metavar="I/N",
        help="encode only every N-th shard from the I-th (0 to N - 1); a last run without --shard merges",
    )
    add(
        "--shard-bytes",
        type=at_least(1),
        metavar="BYTES",
        help="input bytes per shard (default: up to 64 MiB)",
    )
    add(
        "--partitions",
        type=at_least(1),
        default=1,
        metavar="N",
        help="least number of shards (default: 1)",
    )
    add(
        "--keep-sequential-samples",
        action="store_true",
        help="has no effect: the order is always that of the input",
    )
    add(
        "--log-interval",
        type=at_least(1),
        default=1000,
        metavar="N",
        help="documents between progress lines (default: 1000)",
    )
