"""The flags of `megascratch tokenizer`."""

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import (
    add_input,
    add_json_key,
    add_parse_special_tokens,
    add_tokenizer,
    add_vocab_size,
    at_least,
)

TRAINED = ("SentencePieceTokenizer", "HuggingFaceTokenizer", "CharTokenizer")
SPLITS = ("gpt2", "cl100k", "llama3", "qwen2", "o200k", "megatron-v1", "megatron-v2")
ENCODINGS = ("r50k_base", "p50k_base", "cl100k_base", "o200k_base", "llama3", "qwen2")
"""The names of the tables in `megascratch.tokenizer`, which loads every tokenizer library."""
END_OF_TEXT = "<|endoftext|>"

COMMANDS = {
    "train": "Trains a tokenizer on text.",
    "encode": "Prints the ids of a text, separated by spaces.",
    "decode": "Prints the text of ids.",
    "report": "Compares tokenizers on texts.",
    "convert": "Converts a tokenizer to another file format with the same ids.",
    "check": "Tests a tokenizer on hostile and random texts; exit code 1 if a test fails.",
}
EXAMPLES = (
    "megascratch tokenizer train --input corpus/ --output bpe.json \\\n    --vocab-size 8000",
    "megascratch tokenizer train --input input.txt --output characters.json",
    'megascratch tokenizer encode --tokenizer-model bpe.json "a text"',
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch tokenizer",
        "Trains, compares, converts and checks tokenizers; encodes and decodes text.",
        EXAMPLES,
    )
    add_command = made.add_commands(COMMANDS)
    _add_train(add_command("train", examples=EXAMPLES[:2]))
    encode = add_command("encode", examples=EXAMPLES[2:])
    encode.add_argument(
        "text", nargs="?", metavar="TEXT", help="text to encode (default: standard input)"
    )
    decode = add_command(
        "decode", examples=["megascratch tokenizer decode --tokenizer-model bpe.json 64 257 90"]
    )
    decode.add_argument(
        "ids", nargs="*", metavar="ID", help="ids to decode (default: standard input)"
    )
    _add_report(
        add_command(
            "report",
            examples=[
                "megascratch tokenizer report --input corpus/ --tokenizer-model a.json b.model"
            ],
        )
    )
    _add_convert(
        add_command(
            "convert",
            examples=["megascratch tokenizer convert cl100k_base.tiktoken --output cl100k.json"],
        )
    )
    check = add_command(
        "check", examples=["megascratch tokenizer check --tokenizer-model bpe.json"]
    )
    check.add_argument(
        "--random",
        type=at_least(0),
        default=1000,
        metavar="N",
        help="number of random texts (default: 1000)",
    )
    check.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random texts (default: 0)"
    )
    for each in (encode, decode, check):
        add_tokenizer(each)
        add_vocab_size(each)
    add_parse_special_tokens(encode)
    return made


def _add_train(made: Parser) -> None:
    _add_input(made)
    add = made.add_argument
    add(
        "--output",
        required=True,
        metavar="FILE",
        help=".model for SentencePiece, .json for byte-level BPE (with --vocab-size) or characters (without)",
    )
    add(
        "--tokenizer-type",
        metavar="KIND",
        choices=TRAINED,
        help=f"{', '.join(TRAINED)} (default: from --output and --vocab-size)",
    )
    add_vocab_size(made, "number of ids (SentencePiece, byte-level BPE)")
    add(
        "--split",
        metavar="RULE",
        choices=SPLITS,
        default="gpt2",
        help="byte-level BPE: rule that splits text before merging: "
        f"{', '.join(SPLITS)} (default: gpt2, which trains fastest)",
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
        metavar="SHARE",
        help="share of the text's characters to cover; rarer ones become bytes (default: 0.9995)",
    )
    add("--no-eod", action="store_true", help="character tokenizer: no end-of-document id")
    _add_limit(made, 1000)
    add(
        "--threads",
        type=at_least(1),
        default=1,
        metavar="N",
        help="threads of the unigram trainer (default: 1)",
    )


def _add_report(made: Parser) -> None:
    _add_input(made)
    add = made.add_argument
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
    _add_limit(made, 100)
    add_parse_special_tokens(made)


def _add_convert(made: Parser) -> None:
    add = made.add_argument
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
        metavar="NAME",
        choices=ENCODINGS,
        help=f"tiktoken: the published encoding, {', '.join(ENCODINGS)} (default: from the file's name)",
    )
    add(
        "--split",
        metavar="RULE",
        choices=SPLITS,
        help=f"tiktoken: rule that splits text, for your own encoding: {', '.join(SPLITS)}",
    )
    add(
        "--special-tokens",
        nargs="+",
        default=[],
        metavar="WORD",
        help="tiktoken with --split: special tokens",
    )


def _add_input(made: Parser) -> None:
    add_input(made, documents=False)
    add_json_key(made)


def _add_limit(made: Parser, megabytes: int) -> None:
    made.add_argument(
        "--max-megabytes",
        type=at_least(1),
        default=megabytes,
        metavar="N",
        help=f"most text to read (default: {megabytes})",
    )
