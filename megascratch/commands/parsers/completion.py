"""The flags of `megascratch completion`."""

import argparse

from megascratch.commands.parsers.base import Parser
from megascratch.config.errors import UserError

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = (
    "megascratch completion bash >> ~/.bashrc",
    'megascratch completion zsh > "${fpath[1]}/_megascratch"',
    "megascratch completion fish > ~/.config/fish/completions/megascratch.fish",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch completion",
        "Prints the script with which a shell completes commands, flags, values and files.",
        EXAMPLES,
        check=_check,
    )
    made.add_argument(
        "shell", nargs="?", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}"
    )
    # the script calls this with the words that are typed so far
    made.add_argument("--words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return made


def _check(options: argparse.Namespace) -> None:
    if options.shell is None and options.words is None:
        raise UserError(f"SHELL is missing: give one of {', '.join(SHELLS)}")
