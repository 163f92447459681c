"""SentencePiece vocabularies (BPE or unigram). Those trained here lose nothing: decode(encode(text)) == text.

Unknown characters fall back to bytes; nothing is normalised, no space is added or taken away. Two traps are handled
for such a vocabulary: SentencePiece writes a space as U+2581 and so cannot tell the two apart, and its memory grows
with the length of the text it is given at once. A vocabulary from elsewhere that changes its text (Llama 2 puts a
space before it) encodes exactly as the library does.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece

from megascratch.config.errors import UserError
from megascratch.tokenizer import engine
from megascratch.tokenizer.charsmap import maps_in_model, require_sound
from megascratch.tokenizer.interface import Encoded, Tokenizer, as_text, fingerprint, joined, require_ids
from megascratch.tokenizer.vocabulary import read_bytes

SPACE = "\u2581"  # how SentencePiece spells a space inside
LONGEST_ENCODED = 1 << 20  # characters given to SentencePiece at once
LONGEST_TRAINED = 1 << 11  # the trainer leaves out sentences above its limit in bytes, so texts are cut at line ends


class SentencePieceTokenizer(Tokenizer):
    """A .model file; `<eod>` is its end-of-document symbol (also found under the names </s> and <|endoftext|>)."""

    kind = "SentencePieceTokenizer"

    def __init__(self, model: bytes, name: str = "SentencePiece model", add_bos: bool = False):
        refusal = f"{name} is not a SentencePiece model; train one with: megascratch tokenizer train"
        if not model:
            raise UserError(refusal)
        for charsmap in maps_in_model(model):
            require_sound(charsmap, name)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            for number in range(self._pieces.vocab_size()):
                self._pieces.id_to_piece(number)  # a damaged one is no text
        except (RuntimeError, UnicodeDecodeError) as error:
            raise UserError(refusal) from error
        self.vocab_size = self._pieces.vocab_size()
        self.eod = self._end_of_document()
        self.bos, self.pad = (id if id >= 0 else None for id in (self._pieces.bos_id(), self._pieces.pad_id()))
        if add_bos and self.bos is None:
            raise UserError(f"{name} has no begin of text, which a Llama2Tokenizer puts before every text; "
                            f"use --tokenizer-type {self.kind}")  # fmt: skip
        self.fingerprint = fingerprint(self.kind, model, *([b"bos"] if add_bos else []))
        self._before = [self.bos] if add_bos and self.bos is not None else []
        self._changes_nothing = self._pieces.normalize(" \ufb01  x ") == f"{SPACE}\ufb01{SPACE * 2}x{SPACE}"
        spelled = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space_ids = spelled if self._changes_nothing and self._pieces.unk_id() not in spelled else None
        self._encode: engine.Encode | None = None

    @classmethod
    def load(cls, path: Path) -> "SentencePieceTokenizer":
        """Reads a .model file."""
        return cls(read_bytes(path), str(path))

    def _end_of_document(self) -> int | None:
        unknown = self._pieces.unk_id()
        named = [self._pieces.piece_to_id(piece) for piece in ("<eod>", "</s>", "<|endoftext|>")]
        return next((number for number in named if number != unknown), None)

    def encode(self, text: str) -> list[int]:
        """By the reference library."""
        text, ids = as_text(text), list(self._before)
        for part in _parts(text, LONGEST_ENCODED) if self._changes_nothing else [text]:
            for place, plain in enumerate(part.split(SPACE) if self._space_ids else [part]):
                ids += self._space_ids if place and self._space_ids else []
                ids += self._pieces.encode(plain)
        return ids

    def encode_batch(self, texts: Sequence[str | bytes]) -> Encoded:
        """By the fastest exact engine, chosen at the first call; a text with one of the two traps by the reference."""
        clean = [as_text(text) for text in texts]
        if self._encode is None:
            record = self.record(control=False)
            self._encode = engine.fastest(json.dumps(record), self.reference, clean) if record else self.reference
        return joined([
            (self.reference if SPACE in text or len(text) > LONGEST_ENCODED else self._encode)(text) for text in clean
        ])  # fmt: skip

    def reference(self, text: str) -> np.ndarray:
        """[ids] int32 by the reference library."""
        return np.array(self.encode(text), dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Raises: UserError for an id outside the vocabulary."""
        numbers = [int(number) for number in ids]
        require_ids(numbers, self.vocab_size, self.kind)
        return self._pieces.decode(numbers)

    def normalized(self, text: str) -> str:
        """Vocabularies from elsewhere may change spaces and characters."""
        return text if self._changes_nothing else self.decode(self._pieces.encode(self._pieces.normalize(text)))

    def token_bytes(self, number: int) -> bytes:
        """The text of one id as bytes."""
        piece = self._pieces.id_to_piece(number)
        return bytes([int(piece[3:5], 16)]) if self._pieces.is_byte(number) else piece.replace(SPACE, " ").encode()

    def record(self, control: bool) -> dict[str, Any] | None:
        """The same vocabulary as a tokenizer.json, BPE with byte fallback; None: it is another kind.

        Pieces merge when their union is a piece, the best score first (SentencePiece, bpe_model.cc); so every pair of
        pieces that makes a piece becomes a merge. Whether the ids are the same must be checked.

        Args:
            control: with the control symbols as special tokens; SentencePiece never finds them in a text.
        """
        pieces, numbers, plain = self._pieces, range(self.vocab_size), self._plain()
        starts = pieces.normalize(" \ufb01  x ") == f"{SPACE * 2}\ufb01{SPACE * 2}x{SPACE}"
        by_rank = all(pieces.get_score(id) % 1 == 0 for id in plain)  # a unigram model's scores are logarithms
        user_defined = sum(pieces.get_score(id) == 0 for id in plain) > 1  # found before merging; the first merge has 0
        bytes_too = pieces.is_byte(pieces.piece_to_id("<0x00>"))
        if not (self._changes_nothing or starts) or not by_rank or user_defined or not bytes_too:
            return None
        return {
            "version": "1.0",
            "added_tokens": [
                {"id": id, "content": pieces.id_to_piece(id), "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}
                for id in numbers if control and pieces.is_control(id)
            ],
            "normalizer": {"type": "Sequence", "normalizers": [
                *([{"type": "Prepend", "prepend": SPACE}] if starts else []),
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ]},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if starts else []),
            ]},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": pieces.id_to_piece(pieces.unk_id()), "fuse_unk": True,
                "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {pieces.id_to_piece(id): id for id in numbers},
                "merges": self._merges(),
            },
        }  # fmt: skip

    def _plain(self) -> list[int]:
        """Ids of pieces that merges can make."""
        special = (self._pieces.is_control, self._pieces.is_unknown, self._pieces.is_byte, self._pieces.is_unused)
        return [id for id in range(self.vocab_size) if not any(ask(id) for ask in special)]

    def _merges(self) -> list[list[str]]:
        pieces, pairs = self._pieces, []
        id_of = {pieces.id_to_piece(id): id for id in self._plain()}
        for piece, id in id_of.items():
            for cut in range(1, len(piece)):
                left, right = id_of.get(piece[:cut]), id_of.get(piece[cut:])
                if left is not None and right is not None:
                    pairs.append((-pieces.get_score(id), left, right, piece[:cut], piece[cut:]))
        return [[left, right] for *_, left, right in sorted(pairs)]


def load_with_bos(path: Path) -> SentencePieceTokenizer:
    """A .model file whose begin of text stands before every text, as Megatron's Llama2Tokenizer has it."""
    return SentencePieceTokenizer(read_bytes(path), str(path), add_bos=True)


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
