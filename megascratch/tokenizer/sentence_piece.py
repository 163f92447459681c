"""SentencePiece vocabularies (BPE or unigram) that lose nothing: decode(encode(text)) == text for every text.

Unknown characters fall back to bytes; nothing is normalised, no space is added or taken away. Two traps are handled
here: SentencePiece writes a space as U+2581 and so cannot tell the two apart, and its memory grows with the length of
the text it is given at once.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from megascratch.config.errors import UserError
from megascratch.tokenizer.interface import Tokenizer, as_text, fingerprint, require_ids

SPACE = "\u2581"  # how SentencePiece spells a space inside
LONGEST_ENCODED = 1 << 20  # characters given to SentencePiece at once
LONGEST_TRAINED = 1 << 11  # the trainer leaves out sentences above its limit in bytes, so texts are cut at line ends


class SentencePieceTokenizer(Tokenizer):
    """A .model file; `<eod>` is its end-of-document symbol (also found under the names </s> and <|endoftext|>)."""

    kind = "SentencePieceTokenizer"

    def __init__(self, model: bytes, name: str = "SentencePiece model"):
        refusal = f"{name} is not a SentencePiece model; train one with: megascratch tokenizer train"
        if not model:
            raise UserError(refusal)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(refusal) from error
        self.vocab_size = self._pieces.vocab_size()
        self.eod = self._end_of_document()
        self.bos, self.pad = (id if id >= 0 else None for id in (self._pieces.bos_id(), self._pieces.pad_id()))
        self.fingerprint = fingerprint(self.kind, model)
        spelled = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space_ids = None if self._pieces.unk_id() in spelled else spelled

    @classmethod
    def load(cls, path: Path) -> "SentencePieceTokenizer":
        """Reads a .model file."""
        return cls(path.read_bytes(), str(path))

    def _end_of_document(self) -> int | None:
        unknown = self._pieces.unk_id()
        named = [self._pieces.piece_to_id(piece) for piece in ("<eod>", "</s>", "<|endoftext|>")]
        return next((number for number in named if number != unknown), None)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = []
        for part in _parts(as_text(text), LONGEST_ENCODED):
            for place, plain in enumerate(part.split(SPACE) if self._space_ids else [part]):
                ids += self._space_ids if place and self._space_ids else []
                ids += self._pieces.encode(plain)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Raises: UserError for an id outside the vocabulary."""
        numbers = [int(number) for number in ids]
        require_ids(numbers, self.vocab_size, self.kind)
        return self._pieces.decode(numbers)


def _parts(text: str, longest: int) -> Iterator[str]:
    """The text in pieces of at most `longest` characters, cut after a line end where there is one."""
    start = 0
    while len(text) - start > longest:
        stop = text.rfind("\n", start, start + longest) + 1 or start + longest
        yield text[start:stop]
        start = stop
    yield text[start:]


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 0.9995,
    threads: int = 1,
) -> bytes:
    """A .model with `<eod>`, 256 bytes, and pieces that may be white space alone (indentation) but never cross words.

    Raises: UserError where the text is too small or too varied for `vocab_size`.
    """
    model = io.BytesIO()
    sentences = (part.replace(SPACE, " ") for text in texts for part in _parts(text, LONGEST_TRAINED) if part)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            max_sentence_length=8 * LONGEST_TRAINED,
            unk_id=0,
            eos_id=1,
            eos_piece="<eod>",
            bos_id=-1,
            pad_id=-1,
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].strip() or "no text"
        raise UserError(f"SentencePiece cannot train {vocab_size} pieces on this text: {reason}") from error
    return model.getvalue()
