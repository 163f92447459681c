"""Trains byte-level BPE vocabularies, with exactly the merges of Hugging Face's trainer.

The most frequent pair is merged first; of equally frequent ones the pair of lower ids. Byte b has id b, the merges
follow, then the special tokens.

gigatoken's trainer supports only GPT-2's split. It is used where its merges equal the reference's on the beginning of
the text, both engines know every character, and there is enough text for every merge. Texts reach it through a
temporary file, so memory does not grow with them.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tokenizers

from megascratch.config.errors import UserError
from megascratch.tokenizer.fast_engine import gigatoken_rs, same_unicode_classes
from megascratch.tokenizer.interface import as_text
from megascratch.tokenizer.splits import SPLITS
from megascratch.tokenizer.vocabulary import END_OF_TEXT, Vocabulary, from_record

BYTES = {bytes([byte]): byte for byte in range(256)}
BETWEEN = b"\xff"  # no UTF-8 text has this byte
BYTES_PER_MERGE = (
    500  # with less text gigatoken's trainer is slower: rare pairs all have the same few counts
)
SAMPLE = 200_000  # characters of text in the self-check
SAMPLE_MERGES = 300  # merges in the self-check

Merges = list[tuple[bytes, bytes]]


def train(
    texts: Iterable[str | bytes],
    vocab_size: int,
    split: str = "gpt2",
    specials: Sequence[str] = (END_OF_TEXT,),
) -> Vocabulary:
    """Trains a vocabulary of exactly `vocab_size` ids.

    Raises: UserError where `vocab_size` cannot hold the 256 bytes and the special tokens, special tokens are given
    twice or have a single byte, the split is unknown, or the text is too small.
    """
    wanted = vocab_size - len(BYTES) - len(specials)
    if wanted < 0:
        raise UserError(
            f"--vocab-size ({vocab_size}) must hold 256 bytes and {len(specials)} special tokens: "
            f"use {vocab_size - wanted} or more"
        )
    if split not in SPLITS:
        raise UserError(f"--split {split} is unknown; use one of {', '.join(SPLITS)}")
    repeated = len(set(specials)) < len(specials)
    if repeated or any(len(word.encode()) < 2 for word in specials):
        raise UserError(
            f"special tokens {' '.join(map(repr, specials))} must all differ and have two bytes or more"
        )
    merges = _merges(map(as_text, texts), wanted, split)
    if len(merges) < wanted:
        raise UserError(
            f"the text gives {len(merges)} merges, --vocab-size {vocab_size} needs {wanted}: "
            f"use --vocab-size {vocab_size - wanted + len(merges)} or less, or more text"
        )
    tokens = _tokens(merges)
    for word in specials:
        if word.encode() in tokens:
            raise UserError(
                f"special token {word!r} is also a token of the text; give it a name that no text has"
            )
    ids = {word: id for id, word in enumerate(specials, len(tokens))}
    return Vocabulary(tokens, merges, split, ids)


def _tokens(merges: Merges) -> dict[bytes, int]:
    """Token -> id: the bytes first, then the merges in their order."""
    return BYTES | {left + right: id for id, (left, right) in enumerate(merges, len(BYTES))}


def _merges(texts: Iterator[str], wanted: int, split: str) -> Merges:
    if gigatoken_rs is None or split != "gpt2" or wanted == 0:
        return by_reference(texts, wanted, split)
    with tempfile.TemporaryDirectory(prefix="megascratch-") as folder:
        corpus = Path(folder) / "corpus"
        known = _write(texts, corpus)
        enough = corpus.stat().st_size >= wanted * BYTES_PER_MERGE
        if known and enough and _agree(corpus, min(wanted, SAMPLE_MERGES)):
            merges = by_gigatoken(corpus, wanted)
            if _is_alive(merges, corpus):
                return merges
        return by_reference(_read(corpus), wanted, split)


def _agree(corpus: Path, wanted: int) -> bool:
    """Whether both trainers find the same merges on the beginning of the text."""
    start = [text[:SAMPLE] for text in _first(_read(corpus), SAMPLE)]
    sample = corpus.with_name("sample")
    _write(start, sample)
    return by_gigatoken(sample, wanted) == by_reference(start, wanted, "gpt2")


def _write(texts: Iterable[str], corpus: Path) -> bool:
    """Writes the texts to a file. Returns whether both engines know all their characters."""
    known = True
    try:
        with corpus.open("wb") as file:
            for text in texts:
                known = known and same_unicode_classes(text)
                file.write(text.encode() + BETWEEN)
    except OSError as error:
        raise UserError(
            f"{corpus} cannot be written ({error.strerror}): the trainer needs room for the entire text in "
            f"{tempfile.gettempdir()}; set TMPDIR or lower --max-megabytes"
        ) from error
    return known


def _read(corpus: Path) -> Iterator[str]:
    """The texts that `_write` stored."""
    with corpus.open("rb") as file:
        rest = b""
        while block := file.read(1 << 22):
            *texts, rest = (rest + block).split(BETWEEN)
            yield from (text.decode() for text in texts)


def _first(texts: Iterable[str], size: int) -> Iterator[str]:
    for text in texts:
        yield text
        size -= len(text)
        if size <= 0:
            return


def _is_alive(merges: Merges, corpus: Path) -> bool:
    """Whether the last merge occurs in the text. When no pair is left, gigatoken continues with pairs that occur
    nowhere; the token that was merged last is never hidden in a longer one."""
    if not merges:
        return False
    tokens = _tokens(merges)
    record = Vocabulary(tokens, merges, "gpt2", {}).record()
    backend = gigatoken_rs.load_hf_json(json.dumps(record))
    last = tokens[b"".join(merges[-1])]
    return any(last in backend.encode(text) for text in _read(corpus))


def by_reference(texts: Iterable[str], wanted: int, split: str) -> Merges:
    """At most `wanted` merges, from Hugging Face's trainer."""
    record = Vocabulary(BYTES, [], split, {}).record()
    learner = tokenizers.Tokenizer.from_str(json.dumps(record))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(BYTES) + wanted,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    learner.train_from_iterator(texts, trainer)
    return from_record(json.loads(learner.to_str()), "the trained vocabulary").merges


def by_gigatoken(corpus: Path, wanted: int) -> Merges:
    """The same for GPT-2's split, from gigatoken's trainer. `corpus` holds the texts, each followed by BETWEEN."""
    with _silence():
        return gigatoken_rs.train_bpe(str(corpus), len(BYTES) + wanted, [], "huggingface", BETWEEN)[
            1
        ]


@contextmanager
def _silence() -> Iterator[None]:
    """Redirects file descriptors 1 and 2 to /dev/null: the trainer writes to them directly, past Python."""
    kept = [os.dup(stream) for stream in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, old in zip((1, 2), kept, strict=True):
            os.dup2(old, stream)
        for descriptor in (*kept, nowhere):
            os.close(descriptor)
