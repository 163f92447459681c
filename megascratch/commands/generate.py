"""`megascratch generate`: continues prompts with a checkpoint."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megascratch import tokenizer as tokenizers
from megascratch.commands.input_output import add_parse_special_tokens, require_no_input
from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.text.documents import read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sources import find_sources, format_of
from megascratch.inference.generate import Continuation, Sampling, StoppedBy, generate
from megascratch.inference.load import load_for_inference, use_all_threads
from megascratch.model.chunk import ModelChunk
from megascratch.tokenizer import Tokenizer
from megascratch.training.hardware import choose_device

SUMMARY = "continue prompts with a checkpoint"


class Completion(NamedTuple):
    """A prompt and the text that the model generated after it."""

    prompt: str
    text: str
    continuation: Continuation


def main(argv: list[str]) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    options = _parser().parse_args(argv)
    sampling = _sampling(options)
    read = [
        ("--prompts-file", options.prompts_file),
        ("--tokenizer-model", options.tokenizer_model),
    ]
    require_no_input([("--output", options.output)], read)
    if options.max_new_tokens < 1 or options.batch_size < 1:
        raise UserError(
            f"--max-new-tokens ({options.max_new_tokens}) and --batch-size ({options.batch_size}) must be at least 1"
        )
    prompts = list(options.prompt)
    if options.prompts_file:
        prompts += _prompts(options.prompts_file)
    if not prompts:
        prompts = [""]
    device = choose_device(options.device, 0)
    use_all_threads()
    config, model, tokenizer = load_for_inference(
        options.load, device, options.tokenizer_model, options.tokenizer_type
    )
    stops = Stops(tokenizer, options.stop, options.stop_ids)
    ids = [
        _ids(tokenizer, prompt, number, options.parse_special_tokens)
        for number, prompt in enumerate(prompts, 1)
    ]
    completions = complete(
        model,
        config.data,
        stops,
        prompts,
        ids,
        options.max_new_tokens,
        sampling,
        options.batch_size,
    )
    _write(completions, options.output, len(prompts) > 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megascratch generate", description=SUMMARY)
    add = parser.add_argument
    add(
        "--load",
        required=True,
        metavar="DIR",
        help="a folder of checkpoints (the newest valid one is used), or one step; also s3://...",
    )
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt; can be repeated (default: an empty one)",
    )
    add(
        "--prompts-file",
        metavar="FILE",
        help="file with a prompt per line; .jsonl and .parquet: the key text of each record",
    )
    add(
        "--max-new-tokens",
        type=int,
        default=100,
        metavar="N",
        help="most new tokens per prompt (default: 100)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="divide the logits by T; 0 is greedy (default: 1)",
    )
    add("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens (default: all)")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the likeliest tokens with total probability P (default: 1)",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="stop at this text and remove it; can be repeated",
    )
    add(
        "--stop-ids",
        type=int,
        nargs="+",
        default=[],
        metavar="ID",
        help="stop at one of these tokens and remove it",
    )
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--seed", type=int, default=1234, help="random seed of the sampling (default: 1234)")
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="prompts computed together (default: 8)",
    )
    add(
        "--output",
        metavar="FILE",
        help="file to write to; .jsonl: a record per prompt (default: standard output)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: cuda if available")
    add("--tokenizer-model", metavar="FILE", help="default: the checkpoint's own")
    add("--tokenizer-type", choices=tokenizers.KINDS, help="default: the checkpoint's own")
    add_parse_special_tokens(parser)
    return parser


def _sampling(options: argparse.Namespace) -> Sampling:
    given = {
        "--temperature": options.temperature,
        "--top-k": options.top_k,
        "--top-p": options.top_p,
    }
    if options.greedy:
        ignored = [name for name, value in given.items() if value is not None]
        if ignored:
            raise UserError(f"--greedy ignores {' and '.join(ignored)}: remove one or the other")
        return Sampling(temperature=0, seed=options.seed)
    return Sampling(
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=options.top_k or 0,
        top_p=1.0 if options.top_p is None else options.top_p,
        seed=options.seed,
    )


def _prompts(path: str) -> list[str]:
    """One prompt per line. Raises: UserError for a bad line, or a file without prompts."""
    format = None if format_of(path) else "text"
    prompts = []
    for record in read_records(find_sources([path], format), "text", ["text"], sample_by="line"):
        try:
            prompts.append(record.text("text"))
        except BadLine as reason:
            raise UserError(f"{record.place}: {reason}") from reason
    if not any(prompts):
        raise UserError(
            f"--prompts-file {path} contains no prompt: remove the flag to generate from an empty prompt"
        )
    return prompts


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

    def decoded(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of `tokens`. Decoded after `prompt`, since some tokenizers drop a space at the start of a text."""
        before = self.tokenizer.decode(prompt)
        whole = self.tokenizer.decode([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(tokens)

    def _first(self, text: str) -> int | None:
        """Position of the first stop text; None if there is none."""
        positions = [text.find(stop) for stop in self._texts]
        return min((position for position in positions if position >= 0), default=None)


def complete(
    model: ModelChunk,
    data: DataConfig,
    stops: Stops,
    prompts: Sequence[str],
    ids: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    batch_size: int,
) -> Iterator[Completion]:
    """Continues the prompts (`ids` are their tokens) in order, batch by batch."""
    eod = stops.tokenizer.eod
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]

        def stop(
            number: int, tokens: Sequence[int], batch: Sequence[list[int]] = batch
        ) -> StoppedBy | None:
            return stops.reason(batch[number], tokens)

        found = generate(model, data, batch, max_new_tokens, sampling, eod, start, stop)
        for number, continuation in enumerate(found, start + 1):
            prompt = prompts[number - 1]
            if continuation.stopped_by == "max_position_embeddings":
                print(
                    f"prompt {number} stopped after {len(continuation.tokens)} new tokens: the model has only "
                    f"{model.model.max_position_embeddings} positions",
                    file=sys.stderr,
                )
            yield Completion(prompt, stops.text(ids[number - 1], continuation), continuation)


def _ids(tokenizer: Tokenizer, prompt: str, number: int, parse_specials: bool) -> list[int]:
    """Token ids of a prompt. An empty prompt becomes an end-of-document token, after which a document starts."""
    try:
        prompt.encode()  # a command line may contain bytes that are not UTF-8
        ids = tokenizer.encode_bare(prompt, parse_specials)
    except (UserError, UnicodeEncodeError) as error:
        raise UserError(f"prompt {number}: {error}") from error
    if not parse_specials and ids != tokenizer.encode_bare(prompt, parse_specials=True):
        print(
            f"prompt {number} contains the text of a special token, which is encoded as plain text "
            "(use --parse-special-tokens to encode it as the token)",
            file=sys.stderr,
        )
    if tokenizer.before or ids:
        return [*tokenizer.before, *ids]
    if tokenizer.eod is None:
        raise UserError(
            f"prompt {number} is empty, and this {tokenizer.kind} has no end-of-document id to start from: "
            "give --prompt with at least one character"
        )
    return [tokenizer.eod]


def _write(completions: Iterable[Completion], output: str | None, headlines: bool) -> None:
    """Writes to the file, or to standard output as soon as each completion is there."""
    if output is None:
        for text in _as_text(completions, headlines):
            print(text, end="", flush=True)
        return
    texts = (
        map(_as_record, completions)
        if output.endswith(".jsonl")
        else _as_text(completions, headlines)
    )
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        with open(output, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(texts)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error


def _as_text(completions: Iterable[Completion], headlines: bool) -> Iterator[str]:
    """Prompt and continuation as text, with a headline if there are several prompts."""
    for number, item in enumerate(completions, 1):
        if headlines:
            tokens = len(item.continuation.tokens)
            yield f"=== prompt {number}: {tokens} new tokens, stopped by {item.continuation.stopped_by}\n"
        yield f"{item.prompt}{item.text}\n"


def _as_record(item: Completion) -> str:
    record = {"prompt": item.prompt, "text": item.text, "tokens": item.continuation.tokens}
    return (
        json.dumps(record | {"stopped_by": item.continuation.stopped_by}, ensure_ascii=False) + "\n"
    )
