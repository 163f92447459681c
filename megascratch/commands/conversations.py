"""`megascratch conversations`: turns JSONL chat messages into token files with a loss mask, for fine-tuning."""

import argparse

from megascratch.commands.input_output import (
    BadLines,
    input_files,
    of_corpora,
    require_free,
    require_no_input,
)
from megascratch.config.errors import UserError
from megascratch.data.preprocess.conversations import Template, write_conversations
from megascratch.data.text.sources import find_sources
from megascratch.tokenizer import TokenizerSource


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    prefix = options.output_prefix
    source = TokenizerSource.of(options)
    read = [*source.files(), *input_files(options)]
    require_no_input(of_corpora("--output-prefix", [prefix]), read)
    require_free([prefix], options.overwrite)
    tokenizer = source.load()
    if options.turn_end is not None and not options.turn_end.strip():
        raise UserError(
            f"--turn-end {options.turn_end!r} is empty: without an end of turn a model cannot learn to stop"
        )
    given = {"begin": options.turn_begin, "end": options.turn_end, "learned": options.learn}
    template = Template(**{name: value for name, value in given.items() if value is not None})
    bad_lines = BadLines()
    written = write_conversations(
        find_sources(options.input, options.input_format),
        options.output_prefix,
        tokenizer,
        template,
        key=options.json_key,
        model=source.main_file,
        parse_specials=options.parse_special_tokens,
        bad=bad_lines.add,
    )
    bad_lines.print_rest()
    print(
        f"{written.conversations:,} conversations, {written.tokens:,} tokens, {written.learned:,} of them to be "
        f"learned, {written.bad_lines} bad lines; wrote {options.output_prefix}.bin, .idx, .json and its loss mask"
    )
    return 0
