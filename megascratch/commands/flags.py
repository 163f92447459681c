"""Flags that several verbs share, with the same name, meaning and words."""

import argparse

from megascratch.data.text.sources import FORMATS


def add_parse_special_tokens(parser: "argparse._ActionsContainer") -> None:
    """Whether a text may spell special tokens."""
    parser.add_argument(
        "--parse-special-tokens",
        action="store_true",
        help="the text of a special token (<|endoftext|>, ...) becomes the token (default: plain text like any other)",
    )


def add_input(parser: "argparse._ActionsContainer", documents: bool = True) -> None:
    """What is read, and how. `documents`: a text file is one document, or each of its lines."""
    add = parser.add_argument
    what = "files, folders, patterns, - (standard input), in this order; .jsonl .txt .parquet, also .gz .zst .bz2 .xz"
    add("--input", nargs="+", required=True, metavar="FILE", help=what)
    add("--input-format", choices=FORMATS, help="of every input (default: told by the suffix, else jsonl)")
    if documents:
        add("--sample-by", choices=("document", "line"), default="document", help="text files: what one document is")
