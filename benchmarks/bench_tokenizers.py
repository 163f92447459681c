"""Encoding and training speed of byte-level BPE beside Hugging Face's `tokenizers` and tiktoken: one vocabulary, one
core, identical ids (checked), in turn.

    python benchmarks/bench_tokenizers.py [--input FILE ...] [--megabytes 6] [--vocab-size 8000] [--rounds 3]

The text is the standard library's own source unless files are given. `cold` encodes with a tokenizer that has seen no
text but its self-check; `warm` one that has seen this text.
"""

import argparse
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import tiktoken
import tokenizers as library
from alternate import Pair, alternate

from megascratch.tokenizer import train_bpe
from megascratch.tokenizer.hugging_face import HuggingFaceTokenizer
from megascratch.tokenizer.sentence_piece import SentencePieceTokenizer
from megascratch.tokenizer.sentence_piece import train as train_pieces
from megascratch.tokenizer.splits import SPLITS


def main() -> None:
    options = _options()
    texts = list(_at_most(_texts(options.input), options.megabytes * 10**6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(
        f"{len(texts)} texts, {size:.1f} MB, {options.vocab_size:,} ids, {options.rounds} rounds, one core"
    )

    wanted = options.vocab_size - 257
    found: dict[str, list] = {}
    pair = alternate(
        lambda: found.update(ours=train_bpe._merges(iter(texts), wanted, "gpt2")),
        lambda: found.update(theirs=train_bpe.by_reference(texts, wanted, "gpt2")),
        rounds=2,
        warmup=0,
    )
    assert found["ours"] == found["theirs"], "the merges differ"
    _say("training, GPT-2's split, against tokenizers (all cores)", pair, size)

    vocabulary = train_bpe.train(texts, options.vocab_size)
    record = vocabulary.record()
    theirs = library.Tokenizer.from_str(json.dumps(record))
    peer = tiktoken.Encoding(
        "t", pat_str=SPLITS["gpt2"], mergeable_ranks=vocabulary.tokens, special_tokens={}
    )
    warm = HuggingFaceTokenizer(record)
    ids = warm.encode_batch(texts).ids.tolist()
    assert ids == [number for text in texts for number in theirs.encode(text).ids], (
        "ids are not those of tokenizers"
    )
    assert ids == [number for text in texts for number in peer.encode_ordinary(text)], (
        "ids are not those of tiktoken"
    )
    cold = _fresh(record, options.rounds + 1)
    _say(
        "encoding, warm, against tokenizers",
        alternate(
            lambda: warm.encode_batch(texts),
            lambda: [theirs.encode(text).ids for text in texts],
            options.rounds,
            1,
        ),
        size,
    )
    _say(
        "encoding, cold, against tiktoken",
        alternate(
            lambda: next(cold).encode_batch(texts),
            lambda: [peer.encode_ordinary(text) for text in texts],
            options.rounds,
            1,
        ),
        size,
    )

    pieces = SentencePieceTokenizer(train_pieces(texts, options.vocab_size))
    assert pieces.encode_batch(texts).ids.tolist() == [
        id for text in texts for id in pieces.encode(text)
    ]
    _say(
        "SentencePiece BPE, warm, against sentencepiece",
        alternate(
            lambda: pieces.encode_batch(texts),
            lambda: [pieces.encode(text) for text in texts],
            options.rounds,
            1,
        ),
        size,
    )


def _fresh(record: dict, count: int) -> Iterator[HuggingFaceTokenizer]:
    """Tokenizers that have chosen their engine and nothing else, made before the clock runs."""
    made = [HuggingFaceTokenizer(record) for _ in range(count)]
    for tokenizer in made:
        tokenizer.encode_batch(["a"])
    return iter(made)


def _say(what: str, pair: Pair, megabytes: float) -> None:
    print(
        f"{what:<55} {megabytes / pair.ours:7.1f} MB/s beside {megabytes / pair.theirs:6.2f} MB/s   "
        f"{pair.ratio:.1f}x (quartiles {pair.low:.1f} to {pair.high:.1f})"
    )


def _texts(paths: list[str]) -> Iterator[str]:
    for path in paths or sorted(map(str, Path(sysconfig.get_path("stdlib")).glob("**/*.py"))):
        try:
            yield Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _at_most(texts: Iterator[str], size: int) -> Iterator[str]:
    for text in texts:
        size -= len(text.encode())
        if size < 0:
            return
        yield text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", default=[], metavar="FILE")
    parser.add_argument("--megabytes", type=int, default=6)
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
