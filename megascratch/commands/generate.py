"""`megascratch generate`: a checkpoint of any layout and prompts in, continued text out."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.config.settings import Config
from megascratch.data.jsonl import BadLine, parse, read_lines
from megascratch.model.chunk import Chunk
from megascratch.tokenizer import Tokenizer
from megascratch.training.generation import Continuation, Sampling, generate
from megascratch.training.hardware import choose_device
from megascratch.training.inference import load_for_inference, use_all_threads

SUMMARY = "continue prompts with a checkpoint"


class Completion(NamedTuple):
    """A prompt with what the model wrote behind it."""

    prompt: str
    text: str
    continuation: Continuation


def main(argv: list[str]) -> int:
    """The verb. Raises: UserError for what the user can mend."""
    options = _parser().parse_args(argv)
    sampling = _sampling(options)
    if options.max_new_tokens < 1 or options.batch_size < 1:
        raise UserError(f"--max-new-tokens ({options.max_new_tokens}) and --batch-size ({options.batch_size}) "
                        "must be at least 1")  # fmt: skip
    prompts = [*options.prompt, *(_prompts(options.prompts_file) if options.prompts_file else [])] or [""]
    device = choose_device(options.device, 0)
    use_all_threads()
    config, model, tokenizer = load_for_inference(options.load, device, options.tokenizer_model, options.tokenizer_type)
    completions = complete(config, model, tokenizer, prompts, options.max_new_tokens, sampling, options.batch_size)
    _write(completions, options.output, len(prompts) > 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megascratch generate", description=SUMMARY)
    add = parser.add_argument
    add("--load", required=True, metavar="DIR", help="a run's folder of checkpoints (the newest), or one step; also s3://...")
    add("--prompt", action="append", default=[], metavar="TEXT", help="also several times (default: an empty one)")
    add("--prompts-file", metavar="FILE", help="a prompt per line; .jsonl: the key text of each line")
    add("--max-new-tokens", type=int, default=100, metavar="N", help="most tokens per prompt (default: 100)")
    add("--temperature", type=float, metavar="T", help="divides the logits; 0 is greedy (default: 1)")
    add("--top-k", type=int, metavar="K", help="only the K likeliest tokens (default: all)")
    add("--top-p", type=float, metavar="P", help="only the likeliest tokens with probability P together (default: 1)")
    add("--greedy", action="store_true", help="always the likeliest token")
    add("--seed", type=int, default=1234, help="decides the draws, prompt by prompt (default: 1234)")
    add("--batch-size", type=int, default=8, metavar="N", help="prompts computed together (default: 8)")
    add("--output", metavar="FILE", help="default: standard output; .jsonl: a record per prompt")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--tokenizer-model", metavar="FILE", help="default: the checkpoint's own")
    add("--tokenizer-type", choices=tokenizers.KINDS, help="default: the checkpoint's own")
    return parser


def _sampling(options: argparse.Namespace) -> Sampling:
    given = {"--temperature": options.temperature, "--top-k": options.top_k, "--top-p": options.top_p}
    if options.greedy:
        useless = [name for name, value in given.items() if value is not None]
        if useless:
            raise UserError(f"--greedy takes the likeliest token: leave {' and '.join(useless)} away, or --greedy")
        return Sampling(temperature=0, seed=options.seed)
    return Sampling(
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=options.top_k or 0,
        top_p=1.0 if options.top_p is None else options.top_p,
        seed=options.seed,
    )


def _prompts(path: str) -> Iterator[str]:
    for line in read_lines(path):
        try:
            if path.endswith((".jsonl", ".jsonl.gz")):
                yield parse(line, ["text"])[0]
            elif line.raw is None:
                raise BadLine("too long")
            else:
                yield line.raw.decode()
        except (BadLine, UnicodeDecodeError) as reason:
            raise UserError(f"{path}:{line.number}: {reason}") from reason


def complete(
    config: Config,
    model: Chunk,
    tokenizer: Tokenizer,
    prompts: list[str],
    max_new_tokens: int,
    sampling: Sampling,
    batch_size: int,
) -> Iterator[Completion]:
    """The prompts continued, in order. Raises: UserError for a prompt that the model cannot read."""
    ids = [_ids(tokenizer, prompt, number) for number, prompt in enumerate(prompts, 1)]
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        found = generate(model, config, batch, max_new_tokens, sampling, tokenizer.eod, start)
        for number, continuation in enumerate(found, start + 1):
            prompt = prompts[number - 1]
            if continuation.stopped_by == "max_position_embeddings":
                print(f"prompt {number} stopped after {len(continuation.tokens)} new tokens: the model has only "
                      f"{config.model.max_position_embeddings} positions", file=sys.stderr)  # fmt: skip
            yield Completion(prompt, tokenizer.decode(continuation.tokens), continuation)


def _ids(tokenizer: Tokenizer, prompt: str, number: int) -> list[int]:
    """Token ids; an empty prompt is the start of a document, which is what follows the end of another."""
    try:
        prompt.encode()  # a command line may hold bytes that are no UTF-8
        ids = tokenizer.encode(prompt)
    except (UserError, UnicodeEncodeError) as error:
        raise UserError(f"prompt {number}: {error}") from error
    if ids:
        return ids
    if tokenizer.eod is None:
        raise UserError(f"prompt {number} is empty, and this {tokenizer.kind} has no end of document to start from: "
                        "give --prompt with at least one character")  # fmt: skip
    return [tokenizer.eod]


def _write(completions: Iterable[Completion], output: str | None, headlines: bool) -> None:
    """To the file, or as soon as they are there to standard output."""
    if output is None:
        for text in _as_text(completions, headlines):
            print(text, end="", flush=True)
        return
    texts = map(_as_record, completions) if output.endswith(".jsonl") else _as_text(completions, headlines)
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        with open(output, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(texts)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error


def _as_text(completions: Iterable[Completion], headlines: bool) -> Iterator[str]:
    """Prompt and continuation."""
    for number, item in enumerate(completions, 1):
        if headlines:
            tokens = len(item.continuation.tokens)
            yield f"=== prompt {number}: {tokens} new tokens, stopped by {item.continuation.stopped_by}\n"
        yield f"{item.prompt}{item.text}\n"


def _as_record(item: Completion) -> str:
    record = {"prompt": item.prompt, "text": item.text, "tokens": item.continuation.tokens}
    return json.dumps(record | {"stopped_by": item.continuation.stopped_by}, ensure_ascii=False) + "\n"
