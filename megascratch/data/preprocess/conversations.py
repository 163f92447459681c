"""Tokenizes chat conversations (JSONL) for fine-tuning into a corpus with a loss mask.

    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}

Each message is written as  begin, content, end  (by default in ChatML); the tokens of content and end are learned if
the role is one of `learned`, all others are only read. An end of document closes the conversation.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from megascratch.config.errors import UserError
from megascratch.config.printable import shown
from megascratch.data.text.bad_lines import BadReasons
from megascratch.data.text.documents import read_records
from megascratch.data.text.jsonl import BadLine, value_of
from megascratch.data.text.sources import Source
from megascratch.data.tokens.loss_mask import mask_prefix
from megascratch.data.tokens.manifest import write_manifest
from megascratch.data.tokens.token_files import TokenWriter, token_dtype
from megascratch.tokenizer import Tokenizer


@dataclass(frozen=True)
class Template:
    """How a message becomes text; {role} is replaced by its role."""

    begin: str = "<|im_start|>{role}\n"
    end: str = "<|im_end|>\n"
    learned: tuple[str, ...] = ("assistant",)


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


class Tokens(NamedTuple):
    """One encoded conversation."""

    ids: np.ndarray
    """int64 [n]."""
    mask: np.ndarray
    """uint8 [n]: 1 where the token is to be learned."""


class ConversationSummary(NamedTuple):
    """Counts of `write_conversations`."""

    conversations: int
    tokens: int
    learned: int
    bad_lines: int


def messages_of(record: dict, key: str) -> list[Message]:
    """The messages under a key. Raises: BadLine."""
    value = value_of(record, key)
    if not isinstance(value, list) or not value:
        raise BadLine(f"key {key!r} holds no list of messages")
    messages = []
    for at, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise BadLine(f"message {at} is not an object with role and content")
        role = message.get("role")
        content = message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadLine(f"message {at} needs a role and a content, both texts")
        messages.append(Message(role, content))
    return messages


def encode_conversation(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: Template,
    parse_specials: bool = False,
) -> Tokens:
    """Ids and mask of one conversation. Raises: BadLine where nothing in it is to be learned.

    The conversation is one text: ids that the vocabulary puts in front of a text occur only at its start, and are not
    learned.

    Args:
        parse_specials: special tokens are also parsed in roles and contents, not only in the template.
    """
    parts: list[tuple[Sequence[int], bool]] = [(tokenizer.before, False)]
    around_role = template.begin.split("{role}")
    for role, content in messages:
        learned = role in template.learned
        continues = any(len(part) for part, _ in parts[1:])
        begin = _filled(tokenizer, around_role, role, parse_specials, continues)
        parts.append((begin, False))
        turn = _filled(
            tokenizer, ["", template.end], content, parse_specials, continues or bool(begin)
        )
        parts.append((turn, learned))
    parts.append((tokenizer.after, parts[-1][1]))
    if tokenizer.eod is not None and tokenizer.eod not in tokenizer.after:
        parts.append(([tokenizer.eod], parts[-1][1]))
    ids = np.concatenate([np.array(part, dtype=np.int64) for part, _ in parts])
    lengths = [len(part) for part, _ in parts]
    mask = np.repeat([learned for _, learned in parts], lengths).astype(np.uint8)
    if not mask.any():
        roles = ", ".join(sorted({role for role, _ in messages}))
        raise BadLine(
            f"nothing to learn: its roles are {shown(roles)}, learned are {', '.join(template.learned)}"
        )
    return Tokens(ids, mask)


def _filled(
    tokenizer: Tokenizer, own: Sequence[str], foreign: str, parse_specials: bool, continues: bool
) -> list[int]:
    """Ids of the template's own texts with a foreign text between them.

    All are encoded as one text, unless the foreign one would become a special token: then it is encoded separately, as
    plain text.
    """
    ids = tokenizer.encode_bare(foreign.join(own), True, continues)
    if parse_specials:
        return ids
    if _count_specials(tokenizer, ids) == _specials_of(tokenizer, tuple(own)):
        return ids
    if tokenizer.encode_bare(foreign, True) == tokenizer.encode_bare(foreign, False):
        return ids  # a character that the vocabulary does not know
    apart: list[int] = []
    for number, text in enumerate(own):
        if number:
            apart += tokenizer.encode_bare(foreign, False, continues or bool(apart))
        apart += tokenizer.encode_bare(text, True, continues or bool(apart))
    return apart


@lru_cache(maxsize=8)
def _specials_of(tokenizer: Tokenizer, own: tuple[str, ...]) -> int:
    """Number of special tokens in the template's own texts."""
    return sum(_count_specials(tokenizer, tokenizer.encode_bare(text, True, True)) for text in own)


def _count_specials(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    special = set(tokenizer.special_words.values())
    return sum(token in special for token in ids)


def write_conversations(
    sources: Sequence[Source],
    prefix: str,
    tokenizer: Tokenizer,
    template: Template,
    *,
    key: str,
    model: str | None,
    parse_specials: bool = False,
    bad: Callable[[str], None] = lambda line: None,
) -> ConversationSummary:
    """Writes {prefix}.bin/.idx/.json and {prefix}_loss_mask.bin/.idx; `bad` is called with each skipped line.

    Raises: UserError where a file cannot be read or written, or holds no conversation.
    """
    learned = 0
    reasons = BadReasons()
    with ExitStack() as stack:
        corpus = stack.enter_context(TokenWriter(prefix, token_dtype(tokenizer.vocab_size)))
        masks = stack.enter_context(TokenWriter(mask_prefix(prefix), np.uint8))
        for record in read_records(sources, key, [key]):
            try:
                messages = messages_of(record.fields(), key)
                tokens = encode_conversation(messages, tokenizer, template, parse_specials)
            except BadLine as reason:
                line = f"{record.place}: {reason}"
                bad(line)
                reasons.add(line)
                continue
            corpus.add_document(tokens.ids)
            masks.add_document(tokens.mask)
            learned += int(tokens.mask.sum())
        if corpus.documents == 0:
            advice = reasons.advice(sources, "--json-key")
            raise UserError(
                f"no conversation to learn from, {reasons.total:,} bad lines{advice}; nothing written"
            )
    made_with = {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "model": model}
    write_manifest(
        prefix,
        {
            "tokenizer": made_with,
            "template": {
                "begin": template.begin,
                "end": template.end,
                "learned": list(template.learned),
            },
            "parse_special_tokens": parse_specials,
            "documents": corpus.documents,
            "tokens": corpus.tokens,
            "learned_tokens": learned,
            "bad_lines": reasons.total,
            "bin_bytes": corpus.tokens * corpus.dtype.itemsize,
            "min_token": corpus.min_token,
            "max_token": corpus.max_token,
        },
    )
    return ConversationSummary(corpus.documents, corpus.tokens, learned, reasons.total)
