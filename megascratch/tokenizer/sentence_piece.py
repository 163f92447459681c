"""Loads and trains SentencePiece vocabularies (BPE or unigram). Those trained here are lossless.

In a vocabulary trained here unknown characters fall back to bytes, nothing is normalised, and no space is added or
removed, so decode(encode(text)) == text. Two problems of the library are handled for such a vocabulary: it writes a
space as U+2581 and so cannot tell the two apart, and its memory grows with the length of the text it is given at once.
A vocabulary from elsewhere encodes exactly as the library does.

The library never finds a control symbol (`</s>`) in a text, but always a user-defined one. User-defined symbols in
angle or square brackets, and the end of a document, are plain text here unless special tokens are parsed; all others
(runs of spaces, line ends) are ordinary vocabulary.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece

from megascratch.config.errors import UserError
from megascratch.tokenizer import fast_engine, sentence_piece_model
from megascratch.tokenizer.interface import (
    EncodedText,
    Tokenizer,
    as_text,
    fingerprint,
    joined,
    require_ids,
)
from megascratch.tokenizer.sentencepiece_guard import maps_in_model, require_valid_map
from megascratch.tokenizer.vocabulary import read_bytes

SPACE = "\u2581"  # how SentencePiece writes a space internally
END_OF_DOCUMENT = "<eod>"
BRACKETED = re.compile(r"<\S+>|\[\S+\]")
LONGEST_ENCODED = 1 << 20  # characters given to SentencePiece at once
# the trainer skips sentences above its limit in bytes, so texts are cut at line ends
LONGEST_TRAINED = 1 << 11


class SentencePieceTokenizer(Tokenizer):
    """A .model file; `<eod>` is its end-of-document symbol (also found under the names </s> and <|endoftext|>)."""

    kind = "SentencePieceTokenizer"

    def __init__(self, model: bytes, name: str = "SentencePiece model", add_bos: bool = False):
        refusal = (
            f"{name} is not a SentencePiece model; train one with: megascratch tokenizer train"
        )
        if not model:
            raise UserError(refusal)
        for charsmap in maps_in_model(model):
            require_valid_map(charsmap, name)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            for number in range(self._pieces.vocab_size()):
                self._pieces.id_to_piece(number)  # raises for a damaged piece, which is not text
        except (RuntimeError, UnicodeDecodeError) as error:
            raise UserError(refusal) from error
        self.vocab_size = self._pieces.vocab_size()
        self.eod = self._end_of_document()
        bos = self._pieces.bos_id()
        pad = self._pieces.pad_id()
        self.bos = bos if bos >= 0 else None
        self.pad = pad if pad >= 0 else None
        if add_bos and self.bos is None:
            raise UserError(
                f"{name} has no beginning-of-text token, which a Llama2Tokenizer puts before every text; "
                f"use --tokenizer-type {self.kind}"
            )
        self.fingerprint = fingerprint(self.kind, model, *([b"bos"] if add_bos else []))
        self.before = (self.bos,) if add_bos and self.bos is not None else ()
        self._changes_nothing = (
            self._pieces.normalize(" \ufb01  x ") == f"{SPACE}\ufb01{SPACE * 2}x{SPACE}"
        )
        self._puts_space = self._pieces.normalize("x").startswith(SPACE)
        self._model = model
        self._plain_model = sentence_piece_model.as_control(model, self._is_special)
        self._libraries = {(True, False): self._pieces}
        if self._plain_model == model:
            self._libraries[False, False] = self._pieces
        plain = self._library_for(parse_specials=False, continues=False)
        self.special_words = {
            plain.id_to_piece(id): id for id in range(self.vocab_size) if plain.is_control(id)
        }
        spelled = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        ours = (
            self._changes_nothing and self._trained_here() and self._pieces.unk_id() not in spelled
        )
        self._space_ids = spelled if ours else None
        self._encode: dict[bool, fast_engine.Encode] = {}

    def _is_special(self, piece: str, user_defined: bool) -> bool:
        """Whether plain text must never become the piece."""
        if user_defined and BRACKETED.fullmatch(piece):
            return True
        return self._pieces.piece_to_id(piece) in (self.eod, self.bos, self.pad)

    def _trained_here(self) -> bool:
        """Whether the model has the same special symbols as those of `train`."""
        absent = self._pieces.bos_id() < 0 and self._pieces.pad_id() < 0
        return (
            absent and self._pieces.eos_id() == 1 and self._pieces.id_to_piece(1) == END_OF_DOCUMENT
        )

    @classmethod
    def load(cls, path: Path) -> "SentencePieceTokenizer":
        """Reads a .model file."""
        return cls(read_bytes(path), str(path))

    def _end_of_document(self) -> int | None:
        unknown = self._pieces.unk_id()
        for piece in (END_OF_DOCUMENT, "</s>", "<|endoftext|>"):
            number = self._pieces.piece_to_id(piece)
            if number != unknown:
                return number
        return None

    def encode_bare(
        self, text: str, parse_specials: bool = False, continues: bool = False
    ) -> list[int]:
        """Encodes with the reference library."""
        return self._ids_of(text, parse_specials, continues).tolist()

    def _library_for(
        self, parse_specials: bool, continues: bool
    ) -> sentencepiece.SentencePieceProcessor:
        """A variant of the library, cached.

        Args:
            parse_specials: whether it finds special symbols in a text.
            continues: it puts no space in front of a text, as the text continues a previous one.
        """
        key = parse_specials, continues
        if key not in self._libraries:
            model = self._model if parse_specials else self._plain_model
            if continues:
                model = sentence_piece_model.without_dummy_prefix(model)
            self._libraries[key] = sentencepiece.SentencePieceProcessor(model_proto=model)
        return self._libraries[key]

    def encode_batch(
        self, texts: Sequence[str | bytes], parse_specials: bool = False, around: bool = True
    ) -> EncodedText:
        """Encodes with the fastest exact engine, which is chosen at the first call."""
        clean = [as_text(text) for text in texts]
        if parse_specials not in self._encode:
            self._encode[parse_specials] = self._fastest(clean, parse_specials)
        bare = [self._encode[parse_specials](text) for text in clean]
        return joined(self._around(bare) if around else bare)

    def _fastest(self, texts: Sequence[str], parse_specials: bool) -> fast_engine.Encode:
        def reference(text: str) -> np.ndarray:
            return self.reference(text, parse_specials)

        record = self.record(parse_specials)
        if record is None:
            return reference
        longest = None if self._space_ids is None else LONGEST_ENCODED
        return fast_engine.choose(
            json.dumps(record), reference, texts, [SPACE, *self.special_words], longest
        )

    def reference(self, text: str, parse_specials: bool = False) -> np.ndarray:
        """[ids] int32 from the reference library, without `before` and `after`."""
        return self._ids_of(text, parse_specials, continues=False)

    def _ids_of(self, text: str, parse_specials: bool, continues: bool) -> np.ndarray:
        """[ids] int32, encoded part by part: a Python list of all ids of a long text would be large."""
        text = as_text(text)
        library = self._library_for(parse_specials, continues and self._puts_space)
        if self._space_ids is None:
            return np.array(library.encode(text), dtype=np.int32)
        arrays = [np.zeros(0, dtype=np.int32)]
        for part in _parts(text, LONGEST_ENCODED):
            ids: list[int] = []
            for place, plain in enumerate(part.split(SPACE)):
                if place > 0:
                    ids += self._space_ids
                ids += library.encode(plain)
            arrays.append(np.array(ids, dtype=np.int32))
        return np.concatenate(arrays)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Raises: UserError for an id outside the vocabulary."""
        numbers = [int(number) for number in ids]
        require_ids(numbers, self.vocab_size, self.kind)
        return self._pieces.decode(numbers)

    def id_of(self, token: str) -> int | None:
        """The id of a piece; None: the vocabulary has no such piece."""
        number: int = self._pieces.piece_to_id(token)
        return number if self._pieces.id_to_piece(number) == token else None

    def normalized(self, text: str) -> str:
        """The text after normalisation: vocabularies from elsewhere may change spaces and characters."""
        if self._changes_nothing:
            return text
        return self.decode(self._pieces.encode(self._pieces.normalize(text)))

    def token_bytes(self, number: int) -> bytes:
        """The text of one id as bytes."""
        piece = self._pieces.id_to_piece(number)
        if self._pieces.is_byte(number):
            return bytes([int(piece[3:5], 16)])  # <0xFF>
        return piece.replace(SPACE, " ").encode()

    def record(self, parse_specials: bool = False) -> dict[str, Any] | None:
        """The same vocabulary as a tokenizer.json (BPE with byte fallback); None: it is not such a BPE.

        SentencePiece merges two pieces when their union is a piece, the best score first (bpe_model.cc); so every pair
        of pieces that makes a piece becomes a merge. The caller must check that the ids are the same. Control symbols
        keep their ids, and no text becomes one, as in SentencePiece.

        A space is written as U+2581, as in SentencePiece; for a vocabulary that keeps the two apart, as a space.
        """
        pieces = self._library_for(parse_specials, continues=False)
        plain = _mergeable(pieces)
        starts = pieces.normalize(" \ufb01  x ") == f"{SPACE * 2}\ufb01{SPACE * 2}x{SPACE}"
        # a unigram model's scores are logarithms
        by_rank = all(pieces.get_score(id) % 1 == 0 for id in plain)
        # found before merging; the first merge has 0
        user_defined = sum(pieces.get_score(id) == 0 for id in plain) > 1
        bytes_too = pieces.is_byte(pieces.piece_to_id("<0x00>"))
        if not (self._changes_nothing or starts) or not by_rank or user_defined or not bytes_too:
            return None
        space = SPACE if self._space_ids is None else " "
        vocab = {pieces.id_to_piece(id).replace(SPACE, space): id for id in range(self.vocab_size)}
        merges = []
        for left, right in _merges(pieces, plain):
            merges.append([left.replace(SPACE, space), right.replace(SPACE, space)])
        decoders: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
        normalizer = None
        if space == SPACE:
            normalizers = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
            decoders.insert(0, {"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
            if starts:
                normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
                decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
            normalizer = {"type": "Sequence", "normalizers": normalizers}
        return {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": normalizer,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": pieces.id_to_piece(pieces.unk_id()),
                "fuse_unk": True,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": merges,
            },
        }


def _mergeable(pieces: sentencepiece.SentencePieceProcessor) -> list[int]:
    """Ids of pieces that merges can produce."""
    mergeable = []
    for id in range(pieces.vocab_size()):
        is_special = pieces.is_control(id) or pieces.is_unknown(id)
        if not is_special and not pieces.is_byte(id) and not pieces.is_unused(id):
            mergeable.append(id)
    return mergeable


def _merges(pieces: sentencepiece.SentencePieceProcessor, plain: Sequence[int]) -> list[list[str]]:
    """Every pair of pieces whose union is a piece, the best score first."""
    pairs = []
    id_of = {pieces.id_to_piece(id): id for id in plain}
    for piece, id in id_of.items():
        for cut in range(1, len(piece)):
            left = id_of.get(piece[:cut])
            right = id_of.get(piece[cut:])
            if left is not None and right is not None:
                rank = -pieces.get_score(id)
                pairs.append((rank, left, right, piece[:cut], piece[cut:]))
    return [[left, right] for *_, left, right in sorted(pairs)]


def load_with_bos(path: Path) -> SentencePieceTokenizer:
    """Loads a .model file and puts the beginning of text before every text, as Megatron's Llama2Tokenizer does."""
    return SentencePieceTokenizer(read_bytes(path), str(path), add_bos=True)


def _parts(text: str, longest: int) -> Iterator[str]:
    """The text in parts of at most `longest` characters, cut after a line end where there is one."""
    start = 0
    while len(text) - start > longest:
        stop = text.rfind("\n", start, start + longest) + 1 or start + longest
        yield text[start:stop]
        start = stop
    yield text[start:]


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The texts as the trainer takes them: in parts, none of them empty, and with ordinary spaces."""
    for text in texts:
        for part in _parts(text, LONGEST_TRAINED):
            if part:
                yield part.replace(SPACE, " ")


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 0.9995,
    threads: int = 1,
) -> bytes:
    """Trains a .model with `<eod>`, 256 bytes, and pieces that may be only white space but never cross words.

    Raises: UserError where the text is too small or too varied for `vocab_size`.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
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
            eos_piece=END_OF_DOCUMENT,
            bos_id=-1,
            pad_id=-1,
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].strip() or "no text"
        raise UserError(
            f"SentencePiece cannot train {vocab_size} pieces on this text: {reason}"
        ) from error
    return model.getvalue()
