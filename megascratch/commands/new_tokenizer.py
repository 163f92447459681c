"""Trains the tokenizer that `megascratch preprocess --train-tokenizer` asks for, on the text that is preprocessed."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megascratch import tokenizer as tokenizers
from megascratch.commands.input_output import BadLines
from megascratch.commands.text_source import at_most, require_text, texts_of
from megascratch.config.errors import UserError
from megascratch.config.printable import printable
from megascratch.config.verbosity import note
from megascratch.data.text.sources import Source
from megascratch.tokenizer.hugging_face import HuggingFaceTokenizer
from megascratch.tokenizer.registry import SUFFIXES
from megascratch.tokenizer.sentence_piece import SentencePieceTokenizer
from megascratch.tokenizer.simple import CharTokenizer

KINDS = {
    "char": CharTokenizer.kind,
    "bpe": HuggingFaceTokenizer.kind,
    "sentencepiece": SentencePieceTokenizer.kind,
}
EXAMPLE_SIZE = 8192
MOST_MEGABYTES = 1000  # of text, as `tokenizer train` reads by default


def require_trainable(options: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Checks --train-tokenizer and the flags that it needs. Raises: UserError."""
    name = options.train_tokenizer
    flag = f"--train-tokenizer {name}"
    suffix = SUFFIXES[KINDS[name]]
    if options.tokenizer_model is None:
        raise UserError(
            f"{flag} writes a tokenizer: name its file with --tokenizer-model, for example {name}{suffix}"
        )
    if Path(options.tokenizer_model).suffix != suffix:
        raise UserError(
            f"{flag} writes a {suffix} file, --tokenizer-model is {options.tokenizer_model}: use "
            f"{Path(options.tokenizer_model).with_suffix(suffix)}"
        )
    if options.vocab_file is not None or options.merge_file is not None:
        raise UserError(f"{flag} writes --tokenizer-model: remove --vocab-file and --merge-file")
    if options.tokenizer_type is not None:
        raise UserError(f"{flag} already says the type: remove --tokenizer-type")
    if name == "char" and options.vocab_size is not None:
        raise UserError(
            f"{flag} has an id for each character of the text: remove --vocab-size {options.vocab_size}"
        )
    if name != "char" and options.vocab_size is None:
        raise UserError(
            f"{flag} needs the number of ids: give --vocab-size, for example {EXAMPLE_SIZE}"
        )
    pipes = [source.path for source in sources if not source.regular]
    if options.shard or pipes:
        reason = f"--shard {options.shard}" if options.shard else f"the pipe {pipes[0]}"
        raise UserError(
            f"{flag} reads all of the text first, which {reason} does not allow: run megascratch tokenizer train before"
        )


def train_or_reuse(options: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Writes the tokenizer to --tokenizer-model. One that is there is used, unless --overwrite is given.

    Raises: UserError where there is no text or too little of it, or the tokenizer that is there is another one.
    """
    path = Path(options.tokenizer_model)
    kind = KINDS[options.train_tokenizer]
    if path.exists() and not options.overwrite:
        _require_same(tokenizers.load(None, path), kind, options)
        note(f"uses {printable(path)}, which exists (--overwrite trains it again)")
        return
    bad_lines = BadLines()
    texts = at_most(texts_of(sources, options.json_keys, bad_lines), MOST_MEGABYTES, "training on")
    found = require_text(texts, sources, bad_lines, "--json-keys")
    tokenizer = tokenizers.train(
        kind, (each.text for each in found), path, vocab_size=options.vocab_size
    )
    print_trained(path, tokenizer)


def _require_same(there: tokenizers.Tokenizer, kind: str, options: argparse.Namespace) -> None:
    """Raises: UserError if the tokenizer that is there is not of the kind and size that are asked for."""
    size = options.vocab_size or there.vocab_size
    if (there.kind, there.vocab_size) != (kind, size):
        raise UserError(
            f"{options.tokenizer_model} exists and is a {there.kind} of {there.vocab_size:,} ids: remove "
            "--train-tokenizer to use it, name another file, or replace it with --overwrite"
        )


def print_trained(path: str | Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Says which tokenizer was written."""
    eod = "no end of document" if tokenizer.eod is None else f"end of document {tokenizer.eod}"
    made = f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids, {eod}, {tokenizer.fingerprint[:16]}"
    print(f"wrote {printable(path)}: {made}")
