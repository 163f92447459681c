"""Generates text: continues prompts with a model, greedily or by sampling (temperature, top-k, top-p), with a key/value
cache. One forward over the prompts, then one forward for each new token.

Prompts of different lengths share a batch: shorter ones are padded on the left, and no token attends to padding, so the
continuation of a prompt does not depend on the others. Random draws are a function of (seed, number of the prompt,
number of the token).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.tokens.indices import stream_key
from megascratch.layers.context import ForwardContext
from megascratch.layers.visible import Visible
from megascratch.model.chunk import ModelChunk


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


class _Token(NamedTuple):
    """A token that goes into the model. Padding sees padding, because attention to nothing would give NaN."""

    id: int = 0
    position: int = 0
    start: int = 0
    """The column in which its document begins."""
    real: bool = False


@dataclass
class _PromptState:
    """A prompt and its continuation. `column`, `start` and `position` are those of the next token that is fed."""

    rules: _Rules
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    column: int = 0
    start: int = 0
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

    def feed(self, token: int) -> _Token:
        """The token that goes into the model now. After an end of document a new one may begin."""
        fed = _Token(token, self.position, self.start, real=True)
        self.position += 1
        self.column += 1
        if token == self.rules.eod:
            if self.rules.reset_attention:
                self.start = self.column
            if self.rules.reset_positions:
                self.position = 0
        return fed

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
    data: DataConfig,
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
    has_table = model.model.position_embedding_type == "learned_absolute"
    table_rows = model.model.max_position_embeddings if has_table else None
    rules = _Rules(eod, data.reset_position_ids, data.reset_attention_mask, table_rows)
    rows = []
    for number in range(first_number, first_number + len(prompts)):
        rows.append(_PromptState(rules, _generator(sampling.seed, number)))
    device = next(model.parameters()).device
    cache = model.new_cache()
    tokens = _lay_out(rows, prompts, first_number)
    width = len(tokens[0])  # columns so far
    for count in range(max_new_tokens):
        if count > 0:
            tokens = _next_column(rows)
            width += 1
        ids, context = _inputs(tokens, width, cache, device)
        logits = model.next_logits(ids, context).double().cpu()  # [b, v]
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
) -> list[list[_Token]]:
    """The prompts, [b][longest prompt], padded on the left."""
    width = max(map(len, prompts))
    table = []
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        row.column = row.start = width - len(prompt)
        tokens = [_Token()] * row.column
        for token in prompt:
            if row.full:
                raise UserError(
                    f"prompt {first_number + number + 1} has {len(prompt)} tokens, the model has "
                    f"{row.rules.positions} positions (--max-position-embeddings): shorten the prompt"
                )
            tokens.append(row.feed(token))
        table.append(tokens)
    return table


def _next_column(rows: list[_PromptState]) -> list[list[_Token]]:
    """The newest token of each row, [b][1]. A finished row is fed padding; its logits are ignored."""
    column = []
    for row in rows:
        row.fed = row.open
        column.append([row.feed(row.tokens[-1]) if row.fed else _Token()])
    return column


def _inputs(
    tokens: list[list[_Token]], width: int, cache: Mapping[int, Any], device: torch.device
) -> tuple[Tensor, ForwardContext]:
    """Ids [b, n] and the context of the last n of `width` columns; the cache has those before them. A token's column is
    its position in the sample."""
    table = torch.tensor(tokens, device=device)  # [b, n, 4]
    ids, positions, starts, real = table.unbind(2)
    columns = torch.arange(width, device=device)
    newest = columns[width - ids.shape[1] :]
    context = ForwardContext(
        samples=torch.arange(len(ids), device=device),
        positions=positions,
        sample_positions=newest,
        sample_length=width,
        real=real.bool(),
        visible=Visible(newest, columns, starts, in_order=False),
        cache=cache,
    )
    return ids, context


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
