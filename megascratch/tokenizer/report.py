"""Compares tokenizers on texts: bytes per token by group, vocabulary use, longest tokens, lossless round trips."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from megascratch.tokenizer.interface import Tokenizer

LONGEST = 10
TEXTS_AT_ONCE = 256


@dataclass
class Usage:
    """The counts of one tokenizer on the texts."""

    name: str
    kind: str
    vocab_size: int
    bytes: dict[str, int] = field(default_factory=dict)
    """Group -> UTF-8 bytes."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Group -> tokens."""
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """[vocab_size] how often each id occurs."""
    changed: int = 0
    """Texts that decoding does not restore exactly."""
    texts: int = 0

    def bytes_per_token(self, group: str | None = None) -> float | None:
        """UTF-8 bytes per token of a group, or of all groups; None where there is no token."""
        groups = self.bytes if group is None else [group]
        tokens = sum(self.tokens[name] for name in groups)
        return sum(self.bytes[name] for name in groups) / tokens if tokens else None


def measure(
    tokenizers: Mapping[str, Tokenizer], texts: Iterable[tuple[str, str]], parse_specials: bool = False
) -> list[Usage]:
    """Encodes (group, text) pairs with each tokenizer; the texts are read once."""
    usages = [
        Usage(name, each.kind, each.vocab_size, counts=np.zeros(each.vocab_size, np.int64))
        for name, each in tokenizers.items()
    ]
    batch: list[tuple[str, str]] = []
    for pair in texts:
        batch.append(pair)
        if len(batch) == TEXTS_AT_ONCE:
            _add(tokenizers, usages, batch, parse_specials)
            batch = []
    _add(tokenizers, usages, batch, parse_specials)
    return usages


def _add(
    tokenizers: Mapping[str, Tokenizer],
    usages: Sequence[Usage],
    batch: Sequence[tuple[str, str]],
    parse_specials: bool,
) -> None:
    for usage, tokenizer in zip(usages, tokenizers.values(), strict=True):
        ids, lengths = tokenizer.encode_batch([text for _, text in batch], parse_specials)
        usage.counts += np.bincount(ids, minlength=usage.vocab_size)
        usage.texts += len(batch)
        stops = np.cumsum(lengths)
        for (group, text), start, stop in zip(batch, stops - lengths, stops, strict=True):
            usage.bytes[group] = usage.bytes.get(group, 0) + len(text.encode())
            usage.tokens[group] = usage.tokens.get(group, 0) + int(stop - start)
            usage.changed += tokenizer.decode(ids[start:stop].tolist()) != text


def as_json(usage: Usage, tokenizer: Tokenizer) -> dict[str, Any]:
    """The figures of one tokenizer, for JSON."""
    used = np.flatnonzero(usage.counts)
    spelled = sorted(((tokenizer.token_bytes(int(id)), int(id)) for id in used), key=lambda pair: -len(pair[0]))
    return {
        "tokenizer": usage.name,
        "kind": usage.kind,
        "vocab_size": usage.vocab_size,
        "texts": usage.texts,
        "bytes": sum(usage.bytes.values()),
        "tokens": sum(usage.tokens.values()),
        "bytes_per_token": usage.bytes_per_token(),
        "groups": {group: usage.bytes_per_token(group) for group in usage.bytes},
        "ids_used": len(used),
        "texts_changed": usage.changed,
        "longest_tokens": [
            {"id": id, "text": token.decode(errors="replace"), "bytes": len(token), "count": int(usage.counts[id])}
            for token, id in spelled[:LONGEST]
        ],
    }


def picture(usages: Sequence[Usage]) -> Figure:
    """Plots bars (bytes per token of each group) and curves (how often the n-th most frequent id occurs)."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    groups = list(usages[0].bytes) if usages else []
    width = 0.8 / max(len(usages), 1)
    for place, usage in enumerate(usages):
        at = [number + place * width for number in range(len(groups))]
        heights = [usage.bytes_per_token(group) or 0.0 for group in groups]  # no bar where there is no token
        bars.bar(at, heights, width, label=usage.name)
        counts = np.sort(usage.counts[usage.counts > 0])[::-1]
        curves.loglog(range(1, len(counts) + 1), counts, label=f"{usage.name}: {len(counts):,} of {usage.vocab_size:,}")
    bars.set_xticks([number + 0.4 - width / 2 for number in range(len(groups))], groups, rotation=30, ha="right")
    bars.set_ylabel("bytes per token")
    curves.set_xlabel("id, by frequency")
    curves.set_ylabel("occurrences")
    for axes in (bars, curves):
        axes.legend(fontsize="small")
    return figure
