"""`megascratch tokenizer`: trains, compares, converts and checks tokenizers; encodes and decodes text."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from megascratch import tokenizer as tokenizers
from megascratch.commands.input_output import (
    BadLines,
    add_input,
    add_parse_special_tokens,
    input_files,
    require_no_input,
)
from megascratch.commands.own_parts import add_import
from megascratch.commands.text_source import at_most, no_text, require_text, texts_of
from megascratch.config.errors import UserError
from megascratch.config.printable import printable
from megascratch.data.text.sources import find_sources
from megascratch.tokenizer.check import check
from megascratch.tokenizer.convert import convert
from megascratch.tokenizer.registry import SUFFIXES
from megascratch.tokenizer.splits import ENCODINGS, SPLITS
from megascratch.tokenizer.vocabulary import END_OF_TEXT

SUMMARY = "train, compare, convert and check tokenizers; encode and decode text"


def main(argv: list[str]) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    options = _parser().parse_args(argv)
    actions = {
        "train": _train,
        "encode": _encode,
        "decode": _decode,
        "report": _report,
        "convert": _convert,
        "check": _check,
    }
    return actions[options.action](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megascratch tokenizer", description=SUMMARY)
    actions = parser.add_subparsers(dest="action", required=True)
    _add_train(actions.add_parser("train", help="train a tokenizer on text"))
    encode = actions.add_parser("encode", help="print the ids of a text, separated by spaces")
    encode.add_argument("text", nargs="?", help="text to encode (default: standard input)")
    decode = actions.add_parser("decode", help="print the text of ids")
    decode.add_argument("ids", nargs="*", help="ids to decode (default: standard input)")
    _add_report(actions.add_parser("report", help="compare tokenizers on texts"))
    _add_convert(
        actions.add_parser(
            "convert", help="convert a tokenizer to another file format with the same ids"
        )
    )
    check_action = actions.add_parser(
        "check", help="test a tokenizer on hostile and random texts; exit code 1 if a test fails"
    )
    check_action.add_argument(
        "--random",
        type=int,
        default=1000,
        metavar="N",
        help="number of random texts (default: 1000)",
    )
    check_action.add_argument(
        "--seed", type=int, default=0, help="seed of the random texts (default: 0)"
    )
    for action in (encode, decode, check_action):
        action.add_argument(
            "--tokenizer-type",
            metavar="KIND",
            help="default: detected from the file's content",
        )
        action.add_argument(
            "--tokenizer-model", metavar="FILE", help="the tokenizer's file, or its folder"
        )
        action.add_argument("--vocab-size", type=int, help="only for NullTokenizer")
        add_import(action)
    add_parse_special_tokens(encode)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_input(parser)
    add(
        "--output",
        required=True,
        metavar="FILE",
        help=".model for SentencePiece, .json for byte-level BPE (with --vocab-size) or characters (without)",
    )
    add("--tokenizer-type", choices=tuple(SUFFIXES), help="default: from --output and --vocab-size")
    add("--vocab-size", type=int, help="number of ids (SentencePiece, byte-level BPE)")
    add(
        "--split",
        choices=tuple(SPLITS),
        default="gpt2",
        help="byte-level BPE: rule that splits text before merging (default: gpt2, which trains fastest)",
    )
    add(
        "--special-tokens",
        nargs="+",
        default=[END_OF_TEXT],
        metavar="WORD",
        help="byte-level BPE: special tokens, which get the last ids; "
        f"<|endoftext|>, <|begin_of_text|> and <|pad|> get their usual role (default: {END_OF_TEXT})",
    )
    add(
        "--model-type",
        choices=("bpe", "unigram"),
        default="bpe",
        help="SentencePiece's algorithm (default: bpe)",
    )
    add(
        "--character-coverage",
        type=float,
        default=0.9995,
        help="share of the text's characters to cover; rarer ones become bytes (default: 0.9995)",
    )
    add("--no-eod", action="store_true", help="character tokenizer: no end-of-document id")
    add("--max-megabytes", type=int, default=1000, help="most text to train on (default: 1000)")
    add("--threads", type=int, default=1, help="threads of the unigram trainer (default: 1)")


def _add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_input(parser)
    add("--tokenizer-model", nargs="+", required=True, metavar="FILE", help="tokenizers to compare")
    add(
        "--group-key",
        metavar="KEY",
        help="JSONL key of a text's group, such as its language (default: group by file)",
    )
    add(
        "--picture",
        metavar="FILE",
        help="draw bytes per token and use of the vocabulary: .png or .svg",
    )
    add("--json", metavar="FILE", help="write all figures as JSON")
    add("--max-megabytes", type=int, default=100, help="most text to read (default: 100)")
    add_parse_special_tokens(parser)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="FILE",
        help="tokenizer.json, .tiktoken, GPT-2's vocab.json or SentencePiece .model",
    )
    add(
        "--output",
        required=True,
        metavar="FILE",
        help=".json for tokenizer.json, .tiktoken for tiktoken ranks",
    )
    add(
        "--encoding",
        choices=tuple(ENCODINGS),
        help="tiktoken: the published encoding (default: from the file's name)",
    )
    add(
        "--split",
        choices=tuple(SPLITS),
        help="tiktoken: rule that splits text, for your own encoding",
    )
    add(
        "--special-tokens",
        nargs="+",
        default=[],
        metavar="WORD",
        help="tiktoken with --split: special tokens",
    )


def _add_input(parser: argparse.ArgumentParser) -> None:
    add_input(parser, documents=False)
    parser.add_argument(
        "--json-key", default="text", metavar="KEY", help="key of the text (default: text)"
    )


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
    _print_written(options.output, tokenizer)
    return 0


def _kind_of_output(options: argparse.Namespace) -> str:
    suffix = Path(options.output).suffix
    kinds = [kind for kind, ending in SUFFIXES.items() if ending == suffix]
    if not kinds:
        raise UserError(
            f"--output {options.output} must end in .model (SentencePiece) or .json (byte-level BPE, or characters)"
        )
    has_vocab_size = options.vocab_size is not None
    return kinds[0] if has_vocab_size else kinds[-1]


def _print_written(path: str, tokenizer: tokenizers.Tokenizer) -> None:
    eod = "no end of document" if tokenizer.eod is None else f"end of document {tokenizer.eod}"
    made = f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids, {eod}, {tokenizer.fingerprint[:16]}"
    print(f"wrote {printable(path)}: {made}")


def _convert(options: argparse.Namespace) -> int:
    require_no_input(
        [("--output", options.output)], [("the file that is converted", options.source)]
    )
    words = tuple(options.special_tokens)
    tokenizer = convert(
        Path(options.source), Path(options.output), options.encoding, options.split, words
    )
    _print_written(options.output, tokenizer)
    if options.output.endswith(".tiktoken"):
        words_and_ids = " ".join(
            f"{printable(word)}={id}" for word, id in tokenizer.specials.items()
        )
        named = words_and_ids or "no special tokens"
        print(f"the file does not store the split rule or special tokens; special tokens: {named}")
    return 0


def _check(options: argparse.Namespace) -> int:
    tokenizer = tokenizers.load(options.tokenizer_type, options.tokenizer_model, options.vocab_size)
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
    tokenizer = tokenizers.load(options.tokenizer_type, options.tokenizer_model, options.vocab_size)
    text = sys.stdin.read() if options.text is None else options.text
    print(*tokenizer.encode_batch([text], options.parse_special_tokens).ids.tolist())
    return 0


def _decode(options: argparse.Namespace) -> int:
    tokenizer = tokenizers.load(options.tokenizer_type, options.tokenizer_model, options.vocab_size)
    words = options.ids or sys.stdin.read().split()
    try:
        ids = [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"decode reads ids, integers separated by spaces: {error}") from error
    print(tokenizer.decode(ids))
    return 0
