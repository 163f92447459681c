"""`megascratch tokenizer`: trains, compares, converts and checks tokenizers; encodes and decodes text."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from megascratch import tokenizer as tokenizers
from megascratch.commands.input_output import (
    BadLines,
    input_files,
    print_next,
    require_no_input,
)
from megascratch.commands.new_tokenizer import print_trained
from megascratch.commands.text_source import at_most, no_text, require_text, texts_of
from megascratch.config.errors import UserError
from megascratch.config.printable import printable
from megascratch.data.text.sources import find_sources
from megascratch.tokenizer import TokenizerSource
from megascratch.tokenizer.check import check
from megascratch.tokenizer.convert import convert
from megascratch.tokenizer.registry import SUFFIXES
from megascratch.tokenizer.simple import CharTokenizer


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    actions = {
        "train": _train,
        "encode": _encode,
        "decode": _decode,
        "report": _report,
        "convert": _convert,
        "check": _check,
    }
    return actions[options.name](options)


def _train(options: argparse.Namespace) -> int:
    kind = options.tokenizer_type or _kind_of_output(options)
    require_no_input([("--output", options.output)], input_files(options))
    sources = find_sources(options.input, options.input_format)
    bad_lines = BadLines()
    texts = at_most(
        texts_of(sources, [options.json_key], bad_lines), options.max_megabytes, "training on"
    )
    tokenizer = tokenizers.train(
        kind,
        (each.text for each in require_text(texts, sources, bad_lines, "--json-key")),
        options.output,
        vocab_size=options.vocab_size,
        split=options.split,
        specials=options.special_tokens,
        model_type=options.model_type,
        character_coverage=options.character_coverage,
        eod=not options.no_eod,
        threads=options.threads,
    )
    bad_lines.print_rest()
    print_trained(options.output, tokenizer)
    print_next(_preprocessing(options, tokenizer))
    return 0


def _preprocessing(options: argparse.Namespace, tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The command that turns the same text into token files."""
    words = ["preprocess", "--input", *options.input, "--output-prefix", "corpus"]
    words += ["--tokenizer-model", options.output]
    if options.input_format is not None:
        words += ["--input-format", options.input_format]
    if options.json_key != "text":
        words += ["--json-keys", options.json_key]
    if tokenizer.eod is not None and tokenizer.kind != CharTokenizer.kind:
        words.append("--append-eod")
    return words


def _kind_of_output(options: argparse.Namespace) -> str:
    suffix = Path(options.output).suffix
    kinds = [kind for kind, ending in SUFFIXES.items() if ending == suffix]
    if not kinds:
        raise UserError(
            f"--output {options.output} must end in .model (SentencePiece) or .json (byte-level BPE, or characters)"
        )
    has_vocab_size = options.vocab_size is not None
    return kinds[0] if has_vocab_size else kinds[-1]


def _convert(options: argparse.Namespace) -> int:
    require_no_input(
        [("--output", options.output)], [("the file that is converted", options.source)]
    )
    words = tuple(options.special_tokens)
    tokenizer = convert(
        Path(options.source), Path(options.output), options.encoding, options.split, words
    )
    print_trained(options.output, tokenizer)
    if options.output.endswith(".tiktoken"):
        words_and_ids = " ".join(
            f"{printable(word)}={id}" for word, id in tokenizer.specials.items()
        )
        named = words_and_ids or "no special tokens"
        print(f"the file does not store the split rule or special tokens; special tokens: {named}")
    return 0


def _check(options: argparse.Namespace) -> int:
    tokenizer = TokenizerSource.of(options).load()
    roles = {
        "end of document": tokenizer.eod,
        "begin of text": tokenizer.bos,
        "padding": tokenizer.pad,
    }
    named = (
        ", ".join(f"{role} {id}" for role, id in roles.items() if id is not None)
        or "no special ids"
    )
    print(f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids, {named}, {tokenizer.fingerprint[:16]}")
    findings = check(tokenizer, options.random, options.seed)
    for finding in findings:
        verdict = "FAIL" if finding.broken else "pass"
        print(f"{verdict}  {finding.promise} ({finding.texts:,} tried)")
        if finding.broken:
            print(f"      {printable(finding.broken)}")
    return int(any(finding.broken for finding in findings))


def _report(options: argparse.Namespace) -> int:
    from megascratch.tokenizer import report  # brings matplotlib, which is slow to import

    if options.picture and Path(options.picture).suffix not in (".png", ".svg"):
        raise UserError(f"--picture {options.picture} must end in .png or .svg")
    read = [("--tokenizer-model", model) for model in options.tokenizer_model]
    read += input_files(options)
    require_no_input([("--json", options.json), ("--picture", options.picture)], read)
    loaded = {model: tokenizers.load(None, model) for model in options.tokenizer_model}
    sources = find_sources(options.input, options.input_format)
    bad_lines = BadLines()
    texts = texts_of(sources, [options.json_key], bad_lines, options.group_key)
    limited = at_most(texts, options.max_megabytes, "measuring")
    found = report.measure(loaded, limited, options.parse_special_tokens)
    if not found[0].texts:
        raise no_text(sources, bad_lines, "--json-key")
    bad_lines.print_rest()
    figures = [report.as_json(usage, loaded[usage.name]) for usage in found]
    _print_report(figures)
    try:
        if options.json:
            Path(options.json).write_text(
                json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        if options.picture:
            report.picture(found).savefig(options.picture)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error
    return 0


def _print_report(figures: Sequence[dict]) -> None:
    groups = list(figures[0]["groups"])
    title = "bytes per token"
    width = max(len(title), *(len(each["tokenizer"]) for each in figures))
    heads = "  ".join(f"{printable(Path(group).name)[:12]:>12}" for group in groups)
    print(f"{title:<{width}}  {'all':>7}  {heads}")
    for each in figures:
        name = printable(each["tokenizer"])
        row = "  ".join(f"{_per_token(each['groups'][group]):>12}" for group in groups)
        print(f"{name:<{width}}  {_per_token(each['bytes_per_token']):>7}  {row}")
    for each in figures:
        name = printable(each["tokenizer"])
        longest = " ".join(repr(token["text"]) for token in each["longest_tokens"][:4])
        print(
            f"{name}: {each['ids_used']:,} of {each['vocab_size']:,} ids used, "
            f"{each['texts_changed']} of {each['texts']} texts changed, longest {longest}"
        )


def _per_token(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _encode(options: argparse.Namespace) -> int:
    tokenizer = TokenizerSource.of(options).load()
    text = sys.stdin.read() if options.text is None else options.text
    print(*tokenizer.encode_batch([text], options.parse_special_tokens).ids.tolist())
    return 0


def _decode(options: argparse.Namespace) -> int:
    tokenizer = TokenizerSource.of(options).load()
    words = options.ids or sys.stdin.read().split()
    try:
        ids = [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"decode reads ids, integers separated by spaces: {error}") from error
    print(tokenizer.decode(ids))
    return 0
