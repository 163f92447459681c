"""The flags of `megascratch generate`."""

import argparse

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import (
    add_model,
    add_parse_special_tokens,
    at_least,
    require_file,
)
from megascratch.storage.run_folders import require_checkpoint

EXAMPLES = (
    'megascratch generate --load runs/mine --prompt "Once upon"',
    "megascratch generate --load runs/mine --prompts-file prompts.txt \\\n"
    "    --max-new-tokens 200 --top-p 0.9 --output answers.jsonl",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch generate", "Continues prompts with a checkpoint.", EXAMPLES, check=_check
    )
    add_model(made)
    _add_prompts(made)
    _add_sampling(made)
    return made


def _check(options: argparse.Namespace) -> None:
    require_file("--prompts-file", options.prompts_file)
    require_checkpoint(options.load, "--load")


def _add_prompts(made: Parser) -> None:
    group = made.add_argument_group("prompts")
    add = group.add_argument
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt; can be repeated (default: an empty one)",
    )
    add(
        "--prompts-file",
        metavar="FILE",
        help="file with a prompt per line; .jsonl and .parquet: the key text of each record",
    )
    add_parse_special_tokens(group)
    add(
        "--output",
        metavar="FILE",
        help="file to write to; .jsonl: a record per prompt (default: standard output)",
    )
    add(
        "--batch-size",
        type=at_least(1),
        default=8,
        metavar="N",
        help="prompts computed together (default: 8)",
    )


def _add_sampling(made: Parser) -> None:
    add = made.add_argument_group("sampling").add_argument
    add(
        "--max-new-tokens",
        type=at_least(1),
        default=100,
        metavar="N",
        help="most new tokens per prompt (default: 100)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="divide the logits by T; 0 is greedy (default: 1)",
    )
    add("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens (default: all)")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the likeliest tokens with total probability P (default: 1)",
    )
    add("--greedy", action="store_true", help="always take the likeliest token")
    add(
        "--seed",
        type=int,
        default=1234,
        metavar="N",
        help="random seed of the sampling (default: 1234)",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="stop at this text and remove it; can be repeated",
    )
    add(
        "--stop-ids",
        type=int,
        nargs="+",
        default=[],
        metavar="ID",
        help="stop at one of these tokens and remove it",
    )
