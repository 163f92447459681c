"""Adds the flags that several commands share, with the same name and help text."""

import argparse

from megascratch.data.text.sources import FORMATS


def add_parse_special_tokens(parser: "argparse._ActionsContainer") -> None:
    """Adds --parse-special-tokens."""
    parser.add_argument(
        "--parse-special-tokens",
        action="store_true",
        help="encode the text of a special token (<|endoftext|>, ...) as that token (default: as plain text)",
    )


def add_input(parser: "argparse._ActionsContainer", documents: bool = True) -> None:
    """Adds --input and --input-format; with `documents` also --sample-by."""
    add = parser.add_argument
    what = "files, folders, patterns or - (standard input), read in this order; .jsonl .txt .parquet .gz .zst .bz2 .xz"
    add("--input", nargs="+", required=True, metavar="FILE", help=what)
    add("--input-format", choices=FORMATS, help="format of all inputs (default: by the suffix, else jsonl)")
    if documents:
        add(
            "--sample-by",
            choices=("document", "line"),
            default="document",
            help="text files: the unit that becomes one document (default: document, the file)",
        )
