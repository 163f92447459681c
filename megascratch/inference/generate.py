"""Generates text: continues prompts with a model, greedily or by sampling (temperature, top-k, top-p), with a key/value
cache. One forward over the prompts, then one forward for each new token.

Prompts of different lengths share a batch: shorter ones are padded on the left, and no token attends to padding, so the
continuation of a prompt does not depend on the others. Random draws are a function of (seed, number of the prompt,
number of the token).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from megascratch.config.errors import UserError
from megascratch.config.settings import Config
from megascratch.data.tokens.indices import stream_key
from megascratch.model.chunk import ModelChunk

PADDING = -1
"""Document number of the padding on the left of a prompt."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its probabilities.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0: all.
        top_p: only the most likely tokens that together reach this probability (nucleus sampling, Holtzman et al.
            2019, arXiv 1904.09751).
        seed: of the random draws.

    Raises: UserError for a number outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature ({self.temperature}) must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"--top-k ({self.top_k}) must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p ({self.top_p}) must be above 0 and at most 1 (all tokens)")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed ({self.seed}) must be 0 or more and below 2^63")


StoppedBy = Literal["end of document", "stop id", "stop text"]
Stop = Callable[[int, Sequence[int]], StoppedBy | None]
"""Number of a prompt in the batch and its new tokens so far -> why generation ends here, or None to continue."""


@dataclass(frozen=True)
class Continuation:
    """The continuation of a prompt."""

    tokens: list[int]
    """The new tokens, including the end of document or other token that stopped them."""
    stopped_by: StoppedBy | Literal["max_new_tokens", "max_position_embeddings"]


@dataclass(frozen=True)
class _Rules:
    """The settings that decide which tokens attend to each other, and their positions."""

    eod: int | None
    reset_positions: bool
    reset_attention: bool
    positions: int | None  # rows of the position table; None: no limit


@dataclass
class _PromptState:
    """A prompt and its continuation. `document` and `position` are those of the next token that is fed."""

    rules: _Rules
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    document: int = 0
    position: int = 0
    ended: StoppedBy | None = None
    fed: bool = True  # the newest logits belong to this prompt

    @property
    def full(self) -> bool:
        """Whether the position table has no room for another token."""
        return self.rules.positions is not None and self.position >= self.rules.positions

    @property
    def open(self) -> bool:
        """Whether the continuation can get another token."""
        return self.ended is None and not self.full

    def feed(self, token: int) -> tuple[int, int]:
        """Document and position of the token that goes into the model now. After an end of document both may reset."""
        document = self.document
        position = self.position
        self.position += 1
        if token == self.rules.eod:
            if self.rules.reset_attention:
                self.document += 1
            if self.rules.reset_positions:
                self.position = 0
        return document, position

    def continuation(self, max_new_tokens: int) -> Continuation:
        if self.ended:
            return Continuation(self.tokens, self.ended)
        complete = len(self.tokens) == max_new_tokens
        return Continuation(
            self.tokens, "max_new_tokens" if complete else "max_position_embeddings"
        )


@torch.inference_mode()
def generate(
    model: ModelChunk,
    config: Config,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    eod: int | None,
    first_number: int = 0,
    stop: Stop | None = None,
) -> list[Continuation]:
    """Continues the prompts, all in one batch. Each ends at `eod`, at `max_new_tokens`, by `stop`, or when the position
    table is full.

    Args:
        prompts: token ids; none may be empty (`prompt_ids` gives an end of document for an empty text).
        first_number: number of the first prompt in the list of all prompts, for the random draws.
        stop: called after each new token that does not end the document.

    Raises: UserError for a prompt that is longer than the position table, or weights that are not finite.
    """
    has_table = config.model.position_embedding_type == "learned_absolute"
    table_rows = config.model.max_position_embeddings if has_table else None
    rules = _Rules(
        eod, config.data.reset_position_ids, config.data.reset_attention_mask, table_rows
    )
    rows = []
    for number in range(first_number, first_number + len(prompts)):
        rows.append(_PromptState(rules, _generator(sampling.seed, number)))
    device = next(model.parameters()).device
    cache = model.new_cache()
    # each [b, longest prompt]
    ids, documents, positions = _lay_out(rows, prompts, first_number).to(device)
    seen = documents
    for count in range(max_new_tokens):
        if count > 0:
            ids, documents, positions = _next_column(rows).to(device)  # each [b, 1]
            seen = torch.cat((seen, documents), 1)
        # [b, v]
        logits = model.next_logits(ids, positions, _mask(documents, seen), cache).double().cpu()
        for number, (row, scores) in enumerate(zip(rows, logits, strict=True)):
            if not row.fed:
                continue
            row.tokens.append(pick(scores, sampling, row.generator))
            if row.tokens[-1] == eod:
                row.ended = "end of document"
            elif stop is not None:
                row.ended = stop(number, row.tokens)
        if not any(row.open for row in rows):
            break
    return [row.continuation(max_new_tokens) for row in rows]


def _generator(seed: int, number: int) -> torch.Generator:
    """The random draws of one prompt."""
    return torch.Generator().manual_seed(stream_key(seed, number) % 2**63)


def _lay_out(
    rows: list[_PromptState], prompts: Sequence[Sequence[int]], first_number: int
) -> Tensor:
    """Ids, document numbers and positions [3, b, longest prompt], padded on the left."""
    width = max(map(len, prompts))
    table = torch.zeros(3, len(prompts), width, dtype=torch.int64)
    table[1] = PADDING
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        for slot, token in enumerate(prompt, width - len(prompt)):
            if row.full:
                raise UserError(
                    f"prompt {first_number + number + 1} has {len(prompt)} tokens, the model has "
                    f"{row.rules.positions} positions (--max-position-embeddings): shorten the prompt"
                )
            table[:, number, slot] = torch.tensor([token, *row.feed(token)])
    return table


def _next_column(rows: list[_PromptState]) -> Tensor:
    """The newest token of each row, its document and position [3, b, 1]. A finished row is fed token 0; its logits are
    ignored."""
    entries = []
    for row in rows:
        row.fed = row.open
        if row.fed:
            token = row.tokens[-1]
            entries.append((token, *row.feed(token)))
        else:
            entries.append((0, row.document, 0))
    return torch.tensor(entries).t().unsqueeze(2)  # [b, 3] -> [3, b, 1]


def _mask(documents: Tensor, seen: Tensor) -> Tensor:
    """The attention mask [b, 1, n, k]: True for the same document, and not in the future. Padding attends to padding,
    because a row without any True would give NaN.

    Args:
        documents: [b, n] document numbers of the newest tokens.
        seen: [b, k] document numbers of all tokens so far.
    """
    n = documents.shape[1]
    k = seen.shape[1]
    not_future = torch.ones(n, k, dtype=torch.bool, device=seen.device).tril(k - n)  # [n, k]
    same_document = documents[:, None, :, None] == seen[:, None, None, :]  # [b, 1, n, k]
    return same_document & not_future


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from its logits [v] (fp64, on the CPU). Raises: UserError if a logit is not finite."""
    if not logits.isfinite().all():
        raise UserError(
            "the model's logits are not finite: the run diverged before it wrote this checkpoint"
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = torch.arange(len(logits))
    if sampling.top_k or sampling.top_p < 1:
        logits, order = logits.sort(descending=True, stable=True)
        logits = logits[: sampling.top_k or None]
    weights = ((logits - logits.max()) / sampling.temperature).softmax(0)
    if sampling.top_p < 1:
        weights = weights.where(weights.cumsum(0) - weights < sampling.top_p, 0)
    below = weights.cumsum(0)
    drawn = torch.rand((), dtype=torch.float64, generator=generator) * below[-1]
    return int(order[torch.searchsorted(below, drawn, right=True)])
