"""Flags that several verbs share, with the same name, meaning and words."""

import argparse


def add_parse_special_tokens(parser: "argparse._ActionsContainer") -> None:
    """Whether a text may spell special tokens."""
    parser.add_argument(
        "--parse-special-tokens",
        action="store_true",
        help="the text of a special token (<|endoftext|>, ...) becomes the token (default: plain text like any other)",
    )
