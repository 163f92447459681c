"""Continues prompts that are texts: encodes them, stops at texts and tokens, and decodes what was generated."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.inference.generate import Continuation, Sampling, StoppedBy, generate
from megascratch.model.chunk import ModelChunk
from megascratch.tokenizer import Tokenizer


class Completion(NamedTuple):
    """A prompt and the text that the model generated after it."""

    prompt: str
    text: str
    continuation: Continuation


class Stops:
    """The stop texts and stop ids that end a continuation, in addition to the end of document.

    A stop text that is the text of a special token also stops at that token.
    Raises: UserError for an id outside the vocabulary, or an empty text.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[int]):
        for number in ids:
            if not 0 <= number < tokenizer.vocab_size:
                raise UserError(
                    f"--stop-ids {number} is outside the vocabulary (0 to {tokenizer.vocab_size - 1})"
                )
        if "" in texts:
            raise UserError("--stop is empty: give at least one character")
        self.tokenizer = tokenizer
        self._texts = texts
        self._ids = set(ids)
        for text in texts:
            if text in tokenizer.special_words:
                self._ids.add(tokenizer.special_words[text])

    def reason(self, prompt: Sequence[int], tokens: Sequence[int]) -> StoppedBy | None:
        """Why the continuation ends with its last token; None: it does not."""
        if tokens[-1] in self._ids:
            return "stop id"
        if self._texts and self._first(self.decoded(prompt, tokens)) is not None:
            return "stop text"
        return None

    def text(self, prompt: Sequence[int], continuation: Continuation) -> str:
        """The generated text, without the stop text or stop id."""
        tokens = continuation.tokens
        if continuation.stopped_by == "stop id":
            return self.decoded(prompt, tokens[:-1])
        text = self.decoded(prompt, tokens)
        if continuation.stopped_by == "stop text":
            return text[: self._first(text)]
        return text

    def certain_text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The part of the text so far that no later token can change: without an incomplete character at its end, and
        without an end with which a stop text may begin."""
        text = self.decoded(prompt, tokens).rstrip("\ufffd")
        held_back = 0
        for stop in self._texts:
            for length in range(1, len(stop)):
                if text.endswith(stop[:length]):
                    held_back = max(held_back, length)
        return text[: len(text) - held_back]

    def decoded(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of `tokens`. Decoded after `prompt`, since some tokenizers drop a space at the start of a text."""
        before = self.tokenizer.decode(prompt)
        whole = self.tokenizer.decode([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(tokens)

    def _first(self, text: str) -> int | None:
        """Position of the first stop text; None if there is none."""
        positions = [text.find(stop) for stop in self._texts]
        return min((position for position in positions if position >= 0), default=None)


def prompt_ids(
    tokenizer: Tokenizer, prompt: str, number: int, parse_specials: bool = False
) -> list[int]:
    """Token ids of a prompt. An empty prompt becomes an end-of-document token, after which a document starts.

    Args:
        number: of the prompt, from 1, for messages.
        parse_specials: the text of a special token becomes that token.

    Raises: UserError for a text that has no ids, and an empty prompt where the vocabulary has no end of document.
    """
    try:
        prompt.encode()  # a command line may contain bytes that are not UTF-8
        ids = tokenizer.encode_bare(prompt, parse_specials)
    except (UserError, UnicodeEncodeError) as error:
        raise UserError(f"prompt {number}: {error}") from error
    if tokenizer.before or ids:
        return [*tokenizer.before, *ids]
    if tokenizer.eod is None:
        raise UserError(
            f"prompt {number} is empty, and this {tokenizer.kind} has no end-of-document id to start from: "
            "give a prompt of at least one character"
        )
    return [tokenizer.eod]


def complete(
    model: ModelChunk,
    data: DataConfig,
    stops: Stops,
    prompts: Sequence[str],
    ids: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    batch_size: int,
    show: Callable[[str], None] | None = None,
) -> Iterator[Completion]:
    """Continues the prompts (`ids` are their tokens) in order, batch by batch.

    Args:
        show: called with each piece of the first continuation as soon as it is certain, and with what is left of it at
            its end.
    """
    eod = stops.tokenizer.eod
    shown = 0  # characters of the first continuation
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]

        def stop(
            number: int,
            tokens: Sequence[int],
            batch: Sequence[list[int]] = batch,
            start: int = start,
        ) -> StoppedBy | None:
            nonlocal shown
            reason = stops.reason(batch[number], tokens)
            if show is not None and start + number == 0 and reason is None:
                certain = stops.certain_text(batch[number], tokens)
                if len(certain) > shown:
                    show(certain[shown:])
                    shown = len(certain)
            return reason

        known_ids = stops.tokenizer.vocab_size
        found = generate(model, data, batch, max_new_tokens, sampling, eod, start, stop, known_ids)
        for number, continuation in enumerate(found, start):
            text = stops.text(ids[number], continuation)
            if show is not None and number == 0:
                show(text[shown:])
            yield Completion(prompts[number], text, continuation)


def context_notice(
    model: ModelChunk, data: DataConfig, ids: Sequence[Sequence[int]], found: Sequence[Continuation]
) -> str | None:
    """What to say of continuations that went past the positions that the model knows; None: there is none.

    Args:
        ids: the prompts of `found`.
    """
    if any(continuation.cropped for continuation in found):
        return (
            f"the model has {model.model.max_position_embeddings} positions, so each new token saw only so many tokens "
            "before it; a model trained with position_embedding_type rope has no such limit"
        )
    if data.reset_position_ids or model.model.position_embedding_type == "learned_absolute":
        return None
    for prompt, continuation in zip(ids, found, strict=True):
        if len(prompt) + len(continuation.tokens) > data.seq_length + 1:
            return (
                f"the text has more tokens than the {data.seq_length} (seq_length) that the model was trained on "
                "at once: it may get worse after those"
            )
    return None
