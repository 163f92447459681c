"""The flags of `megascratch evaluate`."""

import argparse

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import (
    add_input,
    add_json_key,
    add_model,
    add_parse_special_tokens,
    at_least,
)
from megascratch.data.text.sources import find_sources
from megascratch.storage.run_folders import require_checkpoint

COUNTED = (
    "Every token of every document is counted once, including the end of a document if there is one; "
    "bits per byte = nats / ln 2 / UTF-8 bytes."
)
EXAMPLES = (
    "megascratch evaluate --load runs/mine --input heldout.jsonl",
    "megascratch evaluate --load runs/mine --input held/*.txt \\\n"
    "    --summary runs/mine/summary.json",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch evaluate",
        "Measures a checkpoint's loss and bits per byte on held-out text, and compares with gzip and xz.",
        EXAMPLES,
        COUNTED,
        check=_check,
    )
    add_model(made)
    _add_text(made)
    add = made.add_argument_group("measuring and results").add_argument
    add(
        "--stride",
        type=int,
        metavar="N",
        help="new tokens per window; the rest is context (default: seq_length)",
    )
    add(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help="windows computed together (default: 4,096 tokens)",
    )
    add(
        "--summary",
        metavar="FILE",
        help="JSON file to merge the result into, such as the run's summary.json",
    )
    add("--output-json", metavar="FILE", help="JSON file to write only the result to")
    return made


def _check(options: argparse.Namespace) -> None:
    find_sources(options.input, options.input_format)
    require_checkpoint(options.load, "--load")


def _add_text(made: Parser) -> None:
    group = made.add_argument_group("text")
    add_input(group)
    add_json_key(group)
    group.add_argument("--strict", action="store_true", help="stop at the first bad line")
    group.add_argument(
        "--no-eod",
        action="store_true",
        help="do not predict ends of documents: the model was trained without --append-eod",
    )
    add_parse_special_tokens(group)
