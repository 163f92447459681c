"""Encodes with a Hugging Face tokenizer.json, or byte-level BPE from other files; ids equal those of `tokenizers`.

The text of a special token is plain text, as with the library's `encode_special_tokens`, unless special tokens are
parsed. Tokens that the file puts around a text (Llama 3: the beginning of text) are added, as Megatron's
HuggingFaceTokenizer does. The end of document, the beginning of text and padding are those that tokenizer_config.json
next to the file names, else they are found by their usual names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from megascratch.config.errors import UserError
from megascratch.config.printable import shown
from megascratch.tokenizer import fast_engine, special_tokens
from megascratch.tokenizer.interface import (
    EncodedText,
    Tokenizer,
    as_text,
    fingerprint,
    joined,
    require_ids,
)
from megascratch.tokenizer.sentencepiece_guard import maps_in_json, require_valid_map
from megascratch.tokenizer.vocabulary import inside, merge_pairs, read_json, require_bytes, unspell

NAMES = {
    "eos_token": ("<|endoftext|>", "<|end_of_text|>", "<eod>", "</s>", "<|eos|>", "<eos>"),
    "bos_token": ("<|begin_of_text|>", "<|startoftext|>", "<s>", "<|bos|>", "<bos>"),
    "pad_token": ("<|pad|>", "<pad>", "<|finetune_right_pad_id|>", "[PAD]"),
}
"""Role in tokenizer_config.json -> usual names; the first one in the vocabulary is used."""

IDS_ARE_DECIDED_BY = ("normalizer", "pre_tokenizer", "model", "added_tokens", "post_processor")
MOST_IDS = 1 << 31
SPACE = "\u2581"


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer made from the content of a tokenizer.json. Raises: UserError naming what is wrong with it."""

    kind = "HuggingFaceTokenizer"

    def __init__(
        self,
        record: dict[str, Any],
        name: str = "tokenizer.json",
        roles: dict[str, str] | None = None,
    ):
        record = _checked(record, name)
        self._byte_level = is_byte_level(record)
        decisive = json.dumps(
            {part: record.get(part) for part in IDS_ARE_DECIDED_BY}, sort_keys=True
        )
        rest = json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "decoder": record.get("decoder"),
            }
        )
        self._json = f"{rest[:-1]}, {decisive[1:]}"  # one object of both
        for charsmap in maps_in_json(record.get("normalizer"), name):
            require_valid_map(charsmap, name)
        try:
            self._library = tokenizers.Tokenizer.from_str(self._json)
        except (
            BaseException
        ) as error:  # the library raises bare Exceptions, and where it panics BaseExceptions
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UserError(
                f"{name} is not a tokenizer.json that `tokenizers` reads: {shown(error)}"
            ) from error
        ids = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        if not 0 < self.vocab_size < MOST_IDS:
            raise UserError(
                f"{name} has ids up to {self.vocab_size - 1}; it must have at least one, and all below 2**31"
            )
        if self.vocab_size > len(self._json):
            # a model has a row for each id: a few bytes must not ask for gigabytes
            raise UserError(
                f"{name} has {len(ids):,} tokens with ids up to {self.vocab_size - 1:,}: more ids than it "
                f"has characters ({len(self._json):,})"
            )
        roles = roles or {}
        self.eod = _named(ids, "eos_token", roles.get("eos_token"), name)
        self.bos = _named(ids, "bos_token", roles.get("bos_token"), name)
        self.pad = _named(ids, "pad_token", roles.get("pad_token"), name)
        self.specials = {token["content"]: token["id"] for token in record["added_tokens"]}
        self.fingerprint = fingerprint(self.kind, decisive.encode(), str(self.eod).encode())
        self._read_specials(record)
        self.before, self.after = _around(self._library)
        self._encode: dict[bool, fast_engine.Encode] = {}

    def _read_specials(self, record: dict[str, Any]) -> None:
        """Sets what encoding as plain text needs: the special words, whether the model itself can produce them, and
        whether it puts a space in front of a text."""
        words = special_tokens.plain_words(record, (self.eod, self.bos, self.pad))
        self.special_words = words
        self._added = record["added_tokens"]
        self._made: set[int] = set()  # ids of special tokens that the model itself may produce
        if special_tokens.can_be_made(record, words):
            self._made = set(words.values())
        self._puts_space = special_tokens.continuing(record) != record
        self._others: dict[tuple[bool, bool], tokenizers.Tokenizer] = {}
        switched_off = special_tokens.switched_off(record, words)
        if switched_off != record["added_tokens"]:
            self._library = tokenizers.Tokenizer.from_str(
                self._json_with(record["added_tokens"], switched_off)
            )

    def leave_bare(self) -> None:
        """Puts no ids around a text from now on; the ids are others then, so the fingerprint is another one."""
        if self.before or self.after:
            self.before = self.after = ()
            self.fingerprint = fingerprint(self.kind, self.fingerprint.encode(), b"bare")

    def _json_with(self, added: list[dict[str, Any]], instead: list[dict[str, Any]]) -> str:
        """The file with other added tokens; the rest, which is long, is not parsed again."""
        return self._json.replace(special_tokens.dumped(added), special_tokens.dumped(instead), 1)

    @property
    def record(self) -> dict[str, Any]:
        """The content of a tokenizer.json that gives the same ids; not kept, because it is larger than the library."""
        return json.loads(self._json)

    @classmethod
    def load(cls, path: Path) -> "HuggingFaceTokenizer":
        """Reads a tokenizer.json, and the tokenizer_config.json next to it if there is one."""
        record = read_json(path, cls.kind)
        config = inside(path.parent, "tokenizer_config.json")
        roles = _roles(read_json(config, "tokenizer_config.json")) if config.exists() else None
        return cls(record, str(path), roles)

    def encode_bare(
        self, text: str, parse_specials: bool = False, continues: bool = False
    ) -> list[int]:
        """Encodes with the reference library, which needs no time to start."""
        text = as_text(text)
        continues = continues and self._puts_space
        library = self._library_for(forging=True, continues=continues)
        library.encode_special_tokens = not parse_specials
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        if not parse_specials and not self._made.isdisjoint(ids):
            library = self._library_for(forging=False, continues=continues)
            ids = library.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(
        self, texts: Sequence[str | bytes], parse_specials: bool = False, around: bool = True
    ) -> EncodedText:
        """Encodes with the fastest exact engine, which is chosen at the first call."""
        clean = [as_text(text) for text in texts]
        if parse_specials not in self._encode:
            self._encode[parse_specials] = self._fastest(clean, parse_specials)
        encode = self._encode[parse_specials]
        bare = [encode(text) for text in clean]
        return joined(self._around(bare) if around else bare)

    def _fastest(self, texts: Sequence[str], parse_specials: bool) -> fast_engine.Encode:
        if parse_specials:
            content = self._json
        elif self._made:
            content = json.dumps(special_tokens.without(self.record, self.special_words))
        else:
            others = [token for token in self._added if token["content"] not in self.special_words]
            content = self._json_with(self._added, others)

        def reference(text: str) -> np.ndarray:
            return self.reference(text, parse_specials)

        words = list({**self.specials, **self.special_words})
        return fast_engine.choose(content, reference, texts, words)

    def _library_for(self, forging: bool, continues: bool) -> tokenizers.Tokenizer:
        """A variant of the library, cached.

        Args:
            forging: whether its model may produce a special token out of plain text.
            continues: it puts no space in front of a text, as the text continues a previous one.
        """
        if forging and not continues:
            return self._library
        variant = (forging, continues)
        if variant not in self._others:
            record = self.record
            if not forging:
                record = special_tokens.without(record, self.special_words)
            if continues:
                record = special_tokens.continuing(record)
            record["added_tokens"] = special_tokens.switched_off(record, self.special_words)
            self._others[variant] = tokenizers.Tokenizer.from_str(json.dumps(record))
        return self._others[variant]

    def reference(self, text: str, parse_specials: bool = False) -> np.ndarray:
        """[ids] int32 from the reference library, without `before` and `after`."""
        return np.array(self.encode_bare(text, parse_specials), dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Raises: UserError for an id outside the vocabulary."""
        numbers = [int(number) for number in ids]
        require_ids(numbers, self.vocab_size, self.kind)
        silent = (self.eod, self.bos, self.pad)
        spoken = [number for number in numbers if number not in silent]
        return self._library.decode(spoken, skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling in the file; None: the vocabulary has no such token."""
        found: int | None = self._library.token_to_id(token)
        return found

    def normalized(self, text: str) -> str:
        """The text after the file's normalisation, if it has one. A normaliser from SentencePiece writes a space as
        U+2581, and may put one before the text, which decoding removes."""
        change = self._library.normalizer
        if change is None:
            return text
        changed = change.normalize_str(text)
        if text != "" and change.normalize_str("x").startswith(SPACE):
            changed = changed[1:]
        return changed if self._byte_level else changed.replace(SPACE, " ")

    def token_bytes(self, number: int) -> bytes:
        """The text of one id as bytes (a byte-level token may be part of a character); empty: no token has this id."""
        word = self._library.id_to_token(number)
        if word is None or word in self.specials:
            return (word or "").encode()
        spelled = unspell(word) if self._byte_level else None
        return word.encode() if spelled is None else spelled


def _around(library: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the library puts before and after every text."""
    bare = library.encode("a", add_special_tokens=False).ids
    complete = library.encode("a", add_special_tokens=True).ids
    for start in range(len(complete) - len(bare) + 1):
        stop = start + len(bare)
        if complete[start:stop] == bare:
            return tuple(complete[:start]), tuple(complete[stop:])
    return (), ()


def is_byte_level(record: dict[str, Any]) -> bool:
    """Whether the vocabulary spells bytes in GPT-2's characters."""
    cut = record.get("pre_tokenizer")
    if not isinstance(cut, dict):
        return False
    steps = cut.get("pretokenizers", [cut])
    return any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps)


def _checked(record: Any, name: str) -> dict[str, Any]:
    """The record with its optional parts filled in and merges as pairs.

    Raises: UserError for values of a wrong type, or bytes that have no token.
    """
    model = record.get("model") if isinstance(record, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise UserError(f'{name} is not a tokenizer.json: it has no "model" with a "vocab"')
    added = record.get("added_tokens") or []
    if not isinstance(added, list) or not all(map(_is_added_token, added)):
        raise UserError(
            f'{name} is damaged: "added_tokens" must be a list of {{"id": number, "content": text, ...}}'
        )
    ids = {token["id"] for token in added}
    contents = {token["content"] for token in added}
    if len(ids) < len(added) or len(contents) < len(added):
        raise UserError(f"{name}: two special tokens have the same name or id; each needs its own")
    if isinstance(model["vocab"], dict) and is_byte_level(record):
        _require_spelled_bytes(model["vocab"], added, name)
    merges = model.get("merges")
    if isinstance(merges, list):
        model = model | {"merges": merge_pairs(merges)}
    return record | {"model": model, "added_tokens": added}


def _is_added_token(token: Any) -> bool:
    return (
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and type(token.get("id")) is int
    )


def _require_spelled_bytes(vocab: dict[str, Any], added: list[dict[str, Any]], name: str) -> None:
    """Raises: UserError for a byte without a token, or a special token with the id of another word."""
    require_bytes({unspell(word) for word in vocab if len(word) == 1}, name)
    holders = {number: word for word, number in vocab.items() if isinstance(number, int)}
    for token in added:
        word = holders.get(token["id"], token["content"])
        if word != token["content"]:
            raise UserError(
                f"{name}: special token {token['content']} has id {token['id']}, which is {word!r} in the "
                "vocabulary; give it an id of its own"
            )


def _named(ids: dict[str, int], role: str, configured: str | None, name: str) -> int | None:
    """The id of a role: of the word that tokenizer_config.json names, else of the first usual name in the vocabulary.

    Raises: UserError where the configured word is not in the vocabulary.
    """
    if configured is not None and configured not in ids:
        config = Path(name).with_name("tokenizer_config.json")
        raise UserError(f"{config} names {role} {configured!r}, which {name} does not contain")
    if configured:
        return ids[configured]
    for word in NAMES[role]:
        if word in ids:
            return ids[word]
    return None


def _roles(config: Any) -> dict[str, str]:
    """Roles that tokenizer_config.json names: `"eos_token": "</s>"` or `{"content": "</s>"}`."""
    if not isinstance(config, dict):
        return {}
    roles = {}
    for role in NAMES:
        word = config.get(role)
        if isinstance(word, dict):
            word = word.get("content")
        if isinstance(word, str):
            roles[role] = word
    return roles
