"""Generates text: continues prompts with a model, greedily or by sampling (temperature, top-k, top-p), with a key/value
cache. One forward over the prompts, then one forward for each new token.

Prompts of different lengths share a batch: shorter ones are padded on the left, and no token attends to padding, so the
continuation of a prompt does not depend on the others. Random draws are a function of (seed, number of the prompt,
number of the token).

A model with learned positions has a table of p rows. Where a context needs more, it is cropped to its last p tokens, as
nanoGPT does. That moves every token to another position, so the cache is computed again for each new token. Rotary
positions have no table, and nothing is cropped; where their frequencies depend on the length of the text (see
`layers/rope_kinds.py`), the cache is computed again whenever they change.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from megascratch.config.errors import UserError
from megascratch.config.layers import RopeSpec
from megascratch.config.settings import DataConfig
from megascratch.data.tokens.indices import stream_key
from megascratch.inference.sampling import Sampling
from megascratch.layers.context import ForwardContext
from megascratch.layers.rope_kinds import length_class
from megascratch.layers.visible import Visible
from megascratch.model.chunk import ModelChunk

StoppedBy = Literal["end of document", "stop id", "stop text"]
Stop = Callable[[int, Sequence[int]], StoppedBy | None]
"""Number of a prompt in the batch and its new tokens so far -> why generation ends here, or None to continue."""


@dataclass(frozen=True)
class Continuation:
    """The continuation of a prompt."""

    tokens: list[int]
    """The new tokens, including the end of document or other token that stopped them."""
    stopped_by: StoppedBy | Literal["max_new_tokens"]
    cropped: bool = False
    """Whether some of them were generated without the first tokens, for which the model has no position."""


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
    number: int  # in the batch
    prompt: Sequence[int]
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)  # new ones
    first: int = 0  # token of prompt and continuation with which the context begins
    column: int = 0
    start: int = 0
    position: int = 0
    ended: StoppedBy | None = None

    @property
    def full(self) -> bool:
        """Whether the position table has no room for another token."""
        return self.rules.positions is not None and self.position >= self.rules.positions

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return len(self.prompt) + len(self.tokens) - self.first

    def turns_anew(self, ropes: Iterable[RopeSpec]) -> bool:
        """Whether the newest token changes the angles of those before it."""
        before = self.length - 1
        return any(length_class(rope, self.length) != length_class(rope, before) for rope in ropes)

    @property
    def context(self) -> list[int]:
        """What the model sees of the prompt and its continuation."""
        return [*self.prompt, *self.tokens][self.first :]

    def crop(self) -> None:
        """Makes the context as long as the position table if one of its tokens has no position."""
        size = self.rules.positions
        if size is not None and any(token.position >= size for token in self.lay_out(0)):
            self.first += len(self.context) - size

    def lay_out(self, column: int) -> list[_Token]:
        """The whole context, from this column on."""
        self.column = self.start = column
        self.position = 0
        return [self.feed(token) for token in self.context]

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

    def add(self, token: int, stop: Stop | None) -> None:
        """Appends a new token, which may end the continuation."""
        self.tokens.append(token)
        if token == self.rules.eod:
            self.ended = "end of document"
        elif stop is not None:
            self.ended = stop(self.number, self.tokens)


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
    known_ids: int | None = None,
) -> list[Continuation]:
    """Continues the prompts, all in one batch. Each ends at `eod`, at `max_new_tokens`, or by `stop`.

    Args:
        prompts: token ids; none may be empty (`prompt_ids` gives an end of document for an empty text).
        first_number: number of the first prompt in the list of all prompts, for the random draws.
        stop: called after each new token that does not end the document.
        known_ids: number of ids that the tokenizer has; a model may have more, which are never chosen (None: all are).

    Raises: UserError for weights that are not finite.
    """
    has_table = model.model.position_embedding_type == "learned_absolute"
    table_rows = model.model.max_position_embeddings if has_table else None
    rules = _Rules(eod, data.reset_position_ids, data.reset_attention_mask, table_rows)
    rows = []
    for number, prompt in enumerate(prompts):
        generator = _generator(sampling.seed, first_number + number)
        rows.append(_PromptState(rules, number, prompt, generator))
    device = next(model.parameters()).device
    ropes = model.ropes
    batch: list[_PromptState] = []  # the rows that the cache has
    for _ in range(max_new_tokens):
        open_rows = [row for row in rows if row.ended is None]
        if not open_rows:
            break
        if not batch or any(row.full or row.turns_anew(ropes) for row in open_rows):
            batch = open_rows
            cache = model.new_cache()
            tokens = _lay_out(batch)
            width = len(tokens[0])  # columns so far
        else:
            tokens = _next_column(batch)
            width += 1
        lengths = [row.length for row in batch]
        ids, context = _inputs(tokens, width, lengths, cache, device)
        logits = model.next_logits(ids, context).cpu().double()  # [b, v]
        for row, scores in zip(batch, logits, strict=True):
            if row.ended is None:
                row.add(pick(scores[:known_ids], sampling, row.generator), stop)
    return [Continuation(row.tokens, row.ended or "max_new_tokens", row.first > 0) for row in rows]


def _generator(seed: int, number: int) -> torch.Generator:
    """The random draws of one prompt."""
    return torch.Generator().manual_seed(stream_key(seed, number) % 2**63)


def _lay_out(rows: list[_PromptState]) -> list[list[_Token]]:
    """The contexts, cropped where they must be, [b][longest context], padded on the left."""
    for row in rows:
        row.crop()
    width = max(len(row.context) for row in rows)
    table = []
    for row in rows:
        padding = width - len(row.context)
        table.append([_Token()] * padding + row.lay_out(padding))
    return table


def _next_column(rows: list[_PromptState]) -> list[list[_Token]]:
    """The newest token of each row, [b][1]. A finished row is fed padding; its logits are ignored."""
    column = []
    for row in rows:
        column.append([row.feed(row.tokens[-1]) if row.ended is None else _Token()])
    return column


def _inputs(
    tokens: list[list[_Token]],
    width: int,
    lengths: Sequence[int],
    cache: Mapping[int, Any],
    device: torch.device,
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
        lengths=lengths,
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
