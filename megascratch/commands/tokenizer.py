"""`megascratch tokenizer train|encode|decode`: text to a vocabulary file, text to ids, ids to text."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.data.jsonl import BadLine, parse, read_lines

SUMMARY = "train a tokenizer, or turn text into ids and back"
KIND_OF_SUFFIX = {".model": "SentencePieceTokenizer", ".json": "CharTokenizer"}
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz")


def main(argv: list[str]) -> int:
    """The verb. Raises: UserError for what the user can mend."""
    options = _parser().parse_args(argv)
    run = {"train": _train, "encode": _encode, "decode": _decode}[options.action]
    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megascratch tokenizer", description=SUMMARY)
    actions = parser.add_subparsers(dest="action", required=True)
    _add_train(actions.add_parser("train", help="make a vocabulary file from text"))
    encode = actions.add_parser("encode", help="text to ids, separated by spaces")
    encode.add_argument("text", nargs="?", help="default: standard input")
    decode = actions.add_parser("decode", help="ids to text")
    decode.add_argument("ids", nargs="*", help="default: standard input")
    for action in (encode, decode):
        action.add_argument("--tokenizer-type", choices=tokenizers.KINDS)
        action.add_argument("--tokenizer-model", metavar="FILE", help=".model (SentencePiece) or .json (characters)")
        action.add_argument("--vocab-size", type=int, help="for NullTokenizer alone")
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="JSONL (.jsonl, .jsonl.gz) or plain text files")
    add("--json-key", default="text", metavar="KEY", help="where JSONL keeps the text (default: text)")
    add("--output", required=True, metavar="FILE", help=".model for SentencePiece, .json for characters")
    add("--tokenizer-type", choices=tuple(KIND_OF_SUFFIX.values()), help="default: told by the suffix of --output")
    add("--vocab-size", type=int, help="number of pieces (SentencePiece)")
    add("--model-type", choices=("bpe", "unigram"), default="bpe", help="how SentencePiece cuts (default: bpe)")
    add("--character-coverage", type=float, default=0.9995, help="rarer characters become bytes (default: 0.9995)")
    add("--no-eod", action="store_true", help="characters alone: no end-of-document id")
    add("--max-megabytes", type=int, default=1000, help="text to train on; the rest is left out (default: 1000)")
    add("--threads", type=int, default=1, help="threads of the unigram trainer (default: 1)")


def _train(options: argparse.Namespace) -> int:
    kind = options.tokenizer_type or KIND_OF_SUFFIX.get(Path(options.output).suffix)
    if kind is None:
        raise UserError(f"--output {options.output} must end in .model (SentencePiece) or .json (characters)")
    tokenizer = tokenizers.train(
        kind,
        _at_most(_texts(options.input, options.json_key), options.max_megabytes),
        options.output,
        vocab_size=options.vocab_size,
        model_type=options.model_type,
        character_coverage=options.character_coverage,
        eod=not options.no_eod,
        threads=options.threads,
    )
    eod = "no end of document" if tokenizer.eod is None else f"end of document {tokenizer.eod}"
    print(f"wrote {options.output}: {kind}, {tokenizer.vocab_size:,} ids, {eod}, {tokenizer.fingerprint[:16]}")
    return 0


def _texts(paths: Sequence[str], key: str) -> Iterator[str]:
    for path in paths:
        yield from _documents(path, key) if path.endswith(JSONL_SUFFIXES) else _plain(path)


def _documents(path: str, key: str) -> Iterator[str]:
    """The texts of a JSONL file; lines that give none are reported."""
    for line in read_lines(path):
        try:
            yield parse(line, [key])[0]
        except BadLine as reason:
            print(f"skipped {path}:{line.number}: {reason}", file=sys.stderr)


def _plain(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            while text := file.read(1 << 20):
                yield text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _at_most(texts: Iterator[str], megabytes: int) -> Iterator[str]:
    left = megabytes * 10**6
    for text in texts:
        left -= len(text.encode())
        if left < 0:
            print(f"training on the first {megabytes} MB of the text (--max-megabytes)", file=sys.stderr)
            return
        yield text


def _encode(options: argparse.Namespace) -> int:
    tokenizer = tokenizers.load(options.tokenizer_type, options.tokenizer_model, options.vocab_size)
    text = sys.stdin.read() if options.text is None else options.text
    print(*tokenizer.encode(text))
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
