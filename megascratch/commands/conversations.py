"""`megascratch conversations`: JSONL of messages in, token files and their loss mask for fine-tuning out."""

import argparse

from megascratch import tokenizer as tokenizers
from megascratch.commands.bad_lines import BadLines
from megascratch.commands.flags import add_input, add_parse_special_tokens
from megascratch.commands.outputs import input_files, of_corpora, require_free, require_no_input
from megascratch.config.errors import UserError
from megascratch.data.preprocess.conversations import Template, write_conversations
from megascratch.data.text.sources import find_sources

SUMMARY = "turn JSONL conversations into token files with a loss mask"


def main(argv: list[str]) -> int:
    """The verb. Raises: UserError for what the user can mend."""
    options = _parser().parse_args(argv)
    prefix = options.output_prefix
    read = [("--tokenizer-model", options.tokenizer_model), *input_files(options)]
    require_no_input(of_corpora("--output-prefix", [prefix]), read)
    require_free([prefix], options.overwrite)
    tokenizer = tokenizers.load(options.tokenizer_type, options.tokenizer_model, options.vocab_size)
    if not options.turn_end.strip():
        raise UserError(f"--turn-end {options.turn_end!r} ends no turn: a model could not learn to stop")
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
        bad=bad_lines.tell,
    )
    bad_lines.tell_rest()
    print(
        f"{written.conversations:,} conversations, {written.tokens:,} tokens, {written.learned:,} of them to be "
        f"learned, {written.bad_lines} bad lines; wrote {options.output_prefix}.bin, .idx, .json and its loss mask"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megascratch conversations", description=SUMMARY)
    add, template = parser.add_argument, Template()
    add_input(parser, documents=False)
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.bin/.idx/.json, PREFIX_loss_mask.*")
    add("--overwrite", action="store_true", help="replace a corpus that is there already")
    add("--tokenizer-type", choices=tokenizers.KINDS, help="default: told by the file of --tokenizer-model")
    add("--tokenizer-model", metavar="FILE", help="the tokenizer's file")
    add("--vocab-size", type=int, help="for NullTokenizer alone")
    add("--json-key", default="messages", metavar="KEY", help="where the list of messages stands (default: messages)")
    add("--learn", nargs="+", default=template.learned, metavar="ROLE", help="roles to learn (default: assistant)")
    add("--turn-begin", default=template.begin, help="in front of a message, with {role} (default: ChatML's)")
    add("--turn-end", default=template.end, help="behind a message, learned with it (default: ChatML's)")
    add_parse_special_tokens(parser)
    return parser
