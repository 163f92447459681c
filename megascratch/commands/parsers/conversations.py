"""The flags of `megascratch conversations`."""

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import (
    add_input,
    add_overwrite,
    add_parse_special_tokens,
    add_tokenizer,
    add_vocab_size,
)

EXAMPLES = (
    "megascratch conversations --input chats.jsonl --output-prefix chats \\\n"
    "    --tokenizer-model tokenizer.json",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch conversations",
        "Turns JSONL conversations into token files with a loss mask, for fine-tuning.",
        EXAMPLES,
    )
    group = made.add_argument_group("input")
    add_input(group, documents=False)
    group.add_argument(
        "--json-key",
        default="messages",
        metavar="KEY",
        help="key of the list of messages (default: messages)",
    )
    _add_output(made)
    _add_template(made)
    return made


def _add_output(made: Parser) -> None:
    group = made.add_argument_group("output")
    group.add_argument(
        "--output-prefix",
        required=True,
        metavar="PREFIX",
        help="writes PREFIX.bin/.idx/.json, PREFIX_loss_mask.*",
    )
    add_overwrite(group)
    add_tokenizer(group)
    add_vocab_size(group)
    add_parse_special_tokens(group)


def _add_template(made: Parser) -> None:
    """What is not given is that of `data.preprocess.conversations.Template`."""
    add = made.add_argument_group("template").add_argument
    add("--learn", nargs="+", metavar="ROLE", help="roles to learn (default: assistant)")
    add(
        "--turn-begin",
        metavar="TEXT",
        help="text before a message, with {role} (default: ChatML's)",
    )
    add(
        "--turn-end",
        metavar="TEXT",
        help="text after a message, learned with it (default: ChatML's)",
    )
