"""Flags that several commands have, with one name, one placeholder and one text."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from megascratch.commands.own_parts import add_import
from megascratch.config.errors import UserError
from megascratch.config.registry import names
from megascratch.data.text.documents import SAMPLE_BY
from megascratch.data.text.sources import FORMATS

Flags = argparse._ActionsContainer
"""A parser, or a group of its flags."""


def add_input(parser: Flags, documents: bool = True) -> None:
    """Adds --input and --input-format; with `documents` also --sample-by."""
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders, patterns or - (standard input), read in this order; "
        ".jsonl .txt .parquet .gz .zst .bz2 .xz",
    )
    add(
        "--input-format",
        choices=FORMATS,
        help="format of all inputs (default: by the suffix, else jsonl)",
    )
    if documents:
        add(
            "--sample-by",
            choices=SAMPLE_BY,
            default="document",
            help="text files: what becomes one document: the file, each line with its newline, or each bare-line "
            "without it (default: document)",
        )


def add_json_key(parser: Flags) -> None:
    """Adds --json-key."""
    parser.add_argument(
        "--json-key",
        default="text",
        metavar="KEY",
        help="key of the text in a line (default: text)",
    )


def add_parse_special_tokens(parser: Flags) -> None:
    """Adds --parse-special-tokens."""
    parser.add_argument(
        "--parse-special-tokens",
        action="store_true",
        help="encode the text of a special token (<|endoftext|>, ...) as that token (default: as plain text)",
    )


def add_tokenizer(parser: Flags, of_checkpoint: bool = False) -> None:
    """Adds --tokenizer-model and --tokenizer-type, and --import, which may register a kind; with `of_checkpoint` they
    replace the checkpoint's own."""
    own = "the checkpoint's own"
    about = "the tokenizer's file, or its folder"
    add = parser.add_argument
    add(
        "--tokenizer-model",
        metavar="FILE",
        help=f"{about} (default: {own})" if of_checkpoint else about,
    )
    kinds = names("tokenizer")
    add(
        "--tokenizer-type",
        metavar="KIND",
        help=f"{', '.join(kinds)} (default: {own if of_checkpoint else 'detected from the file'})",
    )
    add("--vocab-file", metavar="FILE", help="vocab.json of a GPT-2 tokenizer, with --merge-file")
    add("--merge-file", metavar="FILE", help="merges.txt of a GPT-2 tokenizer, with --vocab-file")
    add(
        "--tiktoken-pattern",
        choices=("v1", "v2"),
        help="how text is split for a TikTokenizer in Megatron-LM's format (default: v2)",
    )
    rare = argparse.SUPPRESS  # docs/reference/settings.md has them
    add("--tiktoken-num-special-tokens", type=at_least(1), default=1000, help=rare)
    add("--tokenizer-special-tokens", nargs="+", help=rare)
    add("--tokenizer-hf-no-include-special-tokens", action="store_true", help=rare)
    add("--null-tokenizer-eod-id", type=at_least(0), help=rare)
    add_import(parser)


def add_vocab_size(parser: Flags, help: str = "only for NullTokenizer: number of ids") -> None:
    """Adds --vocab-size."""
    parser.add_argument("--vocab-size", type=int, metavar="N", help=help)


def add_model(parser: Flags) -> None:
    """Adds the flags that name a checkpoint, its tokenizer and the device that runs the model."""
    add = parser.add_argument
    add(
        "--load",
        required=True,
        metavar="DIR",
        help="folder of a run or of its checkpoints (the newest valid one is used), or one step; also s3://...",
    )
    add("--device", choices=("cpu", "cuda", "mps"), help="default: cuda if available")
    add_tokenizer(parser, of_checkpoint=True)


def add_overwrite(parser: Flags, help: str = "replace an existing corpus") -> None:
    """Adds --overwrite."""
    parser.add_argument("--overwrite", action="store_true", help=help)


def add_json(parser: Flags) -> None:
    """Adds --json, which prints the result for programs."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def require_file(flag: str, path: str | None) -> None:
    """Raises: UserError if a local file or folder that a flag names cannot be read."""
    if path is not None and "://" not in path and not os.access(path, os.R_OK):
        raise UserError(f"{flag} {path} cannot be read: there is no readable file of this name")


def require_folder_of(flag: str, file: str | None) -> None:
    """Raises: UserError if the folder of a file to be written does not exist."""
    if file is not None and not Path(file).parent.is_dir():
        raise UserError(f"{flag} {file} cannot be written: there is no folder {Path(file).parent}")


def at_least(least: int) -> Callable[[str], int]:
    """A type of a flag: a whole number from `least` on."""

    def number(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"({word}) must be a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"({value}) must be at least {least}")
        return value

    return number
