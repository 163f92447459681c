"""Edits a tokenizer.json so that the text of a special token in a document is plain text, and cannot forge the token.

`tokenizers` has a switch, `encode_special_tokens`, with which it does not search a text for special tokens. The model
may still produce the token (a unigram model whose vocabulary has `</s>` finds it like any word), so that a document
could forge its own end. `without` removes the words from the model as well; `can_be_made` says where that is needed.
"""

import json
import secrets
from collections.abc import Iterable
from typing import Any


def plain_words(record: dict[str, Any], roles: Iterable[int | None]) -> dict[str, int]:
    """Word -> id of the special tokens and of the ids in `roles`: plain text must not become these tokens."""
    ids = set(roles)
    words = {}
    for token in record["added_tokens"]:
        if token.get("special") or token["id"] in ids:
            words[token["content"]] = token["id"]
    for word, number in _entries(record["model"]):
        if number in ids:
            words[word] = number
    return words


def can_be_made(record: dict[str, Any], words: Iterable[str]) -> bool:
    """Whether the model itself may produce one of the words from plain text."""
    model = record["model"]
    wanted = set(words)
    known = {word for word, _ in _entries(model) if word in wanted}
    if model.get("type") != "BPE" or model.get("ignore_merges"):
        return bool(known)
    return any(left + right in known for left, right in model.get("merges") or [])


def switched_off(record: dict[str, Any], words: Iterable[str]) -> list[dict[str, Any]]:
    """`added_tokens` with all of the words marked special: the library's switch applies only to special ones."""
    named = set(words)
    added = []
    for token in record["added_tokens"]:
        if token["content"] in named:
            token = token | {"special": True}
        added.append(token)
    return added


def without(record: dict[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """The record with each word replaced by a random name that no text can contain. All ids stay the same, and so does
    the handling of unknown characters."""
    renamed = {word: f"<{secrets.token_hex(16)}>" for word in words}
    model = dict(record["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(word, word): number for word, number in vocab.items()}
    else:
        model["vocab"] = [[renamed.get(word, word), score] for word, score in vocab]
    unknown = model.get("unk_token")
    if unknown in renamed:
        model["unk_token"] = renamed[unknown]
    if model.get("merges"):
        kept = []
        for left, right in model["merges"]:
            if renamed.keys().isdisjoint((left, right, left + right)):
                kept.append([left, right])
        model["merges"] = kept
    added = []
    for token in record["added_tokens"]:
        content = token["content"]
        added.append(token | {"content": renamed.get(content, content)})
    return record | {"model": model, "added_tokens": added}


def continuing(record: dict[str, Any]) -> dict[str, Any]:
    """The record for a text that continues a previous one: no space is put in front of it. Equal to `record` if that
    never puts one."""
    return record | {
        "normalizer": _without_prefix(record.get("normalizer")),
        "pre_tokenizer": _without_prefix(record.get("pre_tokenizer")),
    }


def _without_prefix(step: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space in front; None: it does nothing else."""
    if not isinstance(step, dict):
        return step
    for steps in ("normalizers", "pretokenizers"):
        if isinstance(step.get(steps), list):
            changed = map(_without_prefix, step[steps])
            return step | {steps: [inner for inner in changed if inner is not None]}
    if step.get("type") == "Prepend":
        return None
    step = dict(step)
    if step.get("add_prefix_space"):
        step["add_prefix_space"] = False
    if step.get("type") == "Metaspace":
        step["prepend_scheme"] = "never"
        step.pop("add_prefix_space", None)
    return step


def _entries(model: dict[str, Any]) -> Iterable[tuple[str, int]]:
    """(word, id) of the model's vocabulary."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return vocab.items()
    return ((word, number) for number, (word, _) in enumerate(vocab))


def dumped(added: list[dict[str, Any]]) -> str:
    """`added_tokens` as it is written in the JSON that HuggingFaceTokenizer keeps."""
    return '"added_tokens": ' + json.dumps(added, sort_keys=True)
