"""`megascratch conversations`: turns JSONL chat messages into token files with a loss mask, for fine-tuning."""

import argparse

from megascratch import tokenizer as tokenizers
from megascratch.commands.input_output import (
    BadLines,
    add_input,
    add_parse_special_tokens,
    input_files,
    of_corpora,
    require_free,
    require_no_input,
)
from megascratch.commands.own_parts import add_import
from megascratch.config.errors import UserError
from megascratch.data.preprocess.conversations import Template, write_conversations
from megascratch.data.text.sources import find_sources

SUMMARY = "turn JSONL conversations into token files with a loss mask"


def main(argv: list[str]) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    options = _parser().parse_args(argv)
    prefix = options.output_prefix
    read = [("--tokenizer-model", options.tokenizer_model), *input_files(options)]
    require_no_input(of_corpora("--output-prefix", [prefix]), read)
    require_free([prefix], options.overwrite)
    tokenizer = tokenizers.load(options.tokenizer_type, options.tokenizer_model, options.vocab_size)
    if not options.turn_end.strip():
        raise UserError(
            f"--turn-end {options.turn_end!r} is empty: without an end of turn a model cannot learn to stop"
        )
    template = Template(options.turn_begin, options.turn_end, tuple(options.learn))
    bad_lines = BadLines()
    written = write_conversations(
        find_sources(options.input, options.input_format),
        options.output_prefix,
        tokenizer,
        template,
        key=options.json_key,
        model=options.tokenizer_model,
        parse_specials=options.parse_special_tokens,
        bad=bad_lines.add,
    )
    bad_lines.print_rest()
    print(
        f"{written.conversations:,} conversations, {written.tokens:,} tokens, {written.learned:,} of them to be "
        f"learned, {written.bad_lines} bad lines; wrote {options.output_prefix}.bin, .idx, .json and its loss mask"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megascratch conversations", description=SUMMARY)
    add = parser.add_argument
    template = Template()
    add_input(parser, documents=False)
    add(
        "--output-prefix",
        required=True,
        metavar="PREFIX",
        help="writes PREFIX.bin/.idx/.json, PREFIX_loss_mask.*",
    )
    add("--overwrite", action="store_true", help="replace an existing corpus")
    add(
        "--tokenizer-type",
        metavar="KIND",
        help="default: detected from the file of --tokenizer-model",
    )
    add("--tokenizer-model", metavar="FILE", help="the tokenizer's file")
    add("--vocab-size", type=int, help="only for NullTokenizer")
    add_import(parser)
    add(
        "--json-key",
        default="messages",
        metavar="KEY",
        help="key of the list of messages (default: messages)",
    )
    add(
        "--learn",
        nargs="+",
        default=template.learned,
        metavar="ROLE",
        help="roles to learn (default: assistant)",
    )
    add(
        "--turn-begin",
        default=template.begin,
        help="text before a message, with {role} (default: ChatML's)",
    )
    add(
        "--turn-end",
        default=template.end,
        help="text after a message, learned with it (default: ChatML's)",
    )
    add_parse_special_tokens(parser)
    return parser
