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
        if group is None:
            size = sum(self.bytes.values())
            tokens = sum(self.tokens.values())
        else:
            size = self.bytes[group]
            tokens = self.tokens[group]
        return size / tokens if tokens else None


def measure(
    tokenizers: Mapping[str, Tokenizer],
    texts: Iterable[tuple[str, str]],
    parse_specials: bool = False,
) -> list[Usage]:
    """Encodes (group, text) pairs with each tokenizer; the texts are read once."""
    usages = []
    for name, tokenizer in tokenizers.items():
        counts = np.zeros(tokenizer.vocab_size, np.int64)
        usages.append(Usage(name, tokenizer.kind, tokenizer.vocab_size, counts=counts))
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
    texts = [text for _, text in batch]
    for usage, tokenizer in zip(usages, tokenizers.values(), strict=True):
        ids, lengths = tokenizer.encode_batch(texts, parse_specials)
        usage.counts += np.bincount(ids, minlength=usage.vocab_size)
        usage.texts += len(batch)
        stops = np.cumsum(lengths)
        for (group, text), start, stop in zip(batch, stops - lengths, stops, strict=True):
            usage.bytes[group] = usage.bytes.get(group, 0) + len(text.encode())
            usage.tokens[group] = usage.tokens.get(group, 0) + int(stop - start)
            usage.changed += tokenizer.decode(ids[start:stop].tolist()) != text


def as_json(usage: Usage, tokenizer: Tokenizer) -> dict[str, Any]:
    """The figures of one tokenizer, for JSON."""
    used = np.flatnonzero(usage.counts).tolist()
    spelled = [(tokenizer.token_bytes(id), id) for id in used]
    spelled.sort(key=lambda pair: -len(pair[0]))
    longest = []
    for token, id in spelled[:LONGEST]:
        text = token.decode(errors="replace")
        longest.append(
            {"id": id, "text": text, "bytes": len(token), "count": int(usage.counts[id])}
        )
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
        "longest_tokens": longest,
    }


def picture(usages: Sequence[Usage]) -> Figure:
    """Plots bars (bytes per token of each group) and curves (how often the n-th most frequent id occurs)."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    groups = list(usages[0].bytes) if usages else []
    left = np.arange(len(groups))  # of each group's first bar
    width = 0.8 / max(len(usages), 1)
    for place, usage in enumerate(usages):
        # no bar where there is no token
        heights = [usage.bytes_per_token(group) or 0.0 for group in groups]
        bars.bar(left + place * width, heights, width, label=usage.name)
        counts = np.sort(usage.counts[usage.counts > 0])[::-1]
        label = f"{usage.name}: {len(counts):,} of {usage.vocab_size:,}"
        curves.loglog(range(1, len(counts) + 1), counts, label=label)
    bars.set_xticks(left + 0.4 - width / 2, groups, rotation=30, ha="right")
    bars.set_ylabel("bytes per token")
    curves.set_xlabel("id, by frequency")
    curves.set_ylabel("occurrences")
    for axes in (bars, curves):
        axes.legend(fontsize="small")
    return figure
