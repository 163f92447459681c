"""`megascratch generate`: continues prompts with a checkpoint."""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megascratch.commands.input_output import require_no_input
from megascratch.config.errors import UserError
from megascratch.config.verbosity import note
from megascratch.data.text.documents import read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sources import find_sources, format_of
from megascratch.inference.sampling import Sampling
from megascratch.tokenizer import TokenizerSource

if TYPE_CHECKING:
    from megascratch.inference.complete import Completion
    from megascratch.inference.generate import Continuation
    from megascratch.tokenizer import Tokenizer

SPECIAL_AS_TEXT = (
    "prompt {} contains the text of a special token, which is encoded as plain text "
    "(use --parse-special-tokens to encode it as the token)"
)


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    sampling = _sampling(options)
    read = [("--prompts-file", options.prompts_file), *TokenizerSource.of(options).files()]
    require_no_input([("--output", options.output)], read)
    prompts = list(options.prompt)
    if options.prompts_file:
        prompts += _prompts(options.prompts_file)
    if not prompts:
        prompts = [""]
    # torch comes after the checks that do not need it
    from megascratch.inference.complete import Stops, complete, context_notice, prompt_ids
    from megascratch.inference.load import load_for_inference, use_all_threads
    from megascratch.training.hardware import choose_device

    device = choose_device(options.device, 0)
    use_all_threads()
    config, model, tokenizer = load_for_inference(options.load, device, TokenizerSource.of(options))
    stops = Stops(tokenizer, options.stop, options.stop_ids)
    ids = []
    for number, prompt in enumerate(prompts, 1):
        ids.append(prompt_ids(tokenizer, prompt, number, options.parse_special_tokens))
        if not options.parse_special_tokens and _has_special(tokenizer, prompt):
            note(SPECIAL_AS_TEXT.format(number))
    streams = options.output is None and len(prompts) == 1
    completions = complete(
        model,
        config.data,
        stops,
        prompts,
        ids,
        options.max_new_tokens,
        sampling,
        options.batch_size,
        _show if streams else None,
    )
    found: list[Continuation] = []
    texts = _texts(completions, options.output, len(prompts) > 1, found)
    if streams:
        _show(prompts[0])
        list(texts)  # the continuation is shown as it is generated
        _show("\n")
    else:
        _write(texts, options.output)
    notice = context_notice(model, config.data, ids, found)
    if notice is not None:
        note(f"notice: {notice}")
    return 0


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
    for record in read_records(
        find_sources([path], format), "text", ["text"], sample_by="bare-line"
    ):
        try:
            prompts.append(record.text("text"))
        except BadLine as reason:
            raise UserError(f"{record.place}: {reason}") from reason
    if not any(prompts):
        raise UserError(
            f"--prompts-file {path} contains no prompt: remove the flag to generate from an empty prompt"
        )
    return prompts


def _has_special(tokenizer: "Tokenizer", prompt: str) -> bool:
    """Whether a prompt contains the text of a special token."""
    plain = tokenizer.encode_bare(prompt)
    return plain != tokenizer.encode_bare(prompt, parse_specials=True)


def _show(text: str) -> None:
    """Prints a piece of the text as soon as it is generated."""
    print(text, end="", flush=True)


def _texts(
    completions: "Iterable[Completion]",
    output: str | None,
    headlines: bool,
    found: "list[Continuation]",
) -> Iterator[str]:
    """What is written for each completion: a record (to .jsonl), or text. Appends its continuation to `found`."""
    for completion in completions:
        found.append(completion.continuation)
        if output is not None and output.endswith(".jsonl"):
            yield _as_record(completion)
        else:
            yield _as_text(completion, len(found) if headlines else None)


def _write(texts: Iterable[str], output: str | None) -> None:
    """Writes to the file, or to standard output as soon as each text is there."""
    if output is None:
        for text in texts:
            _show(text)
        return
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        with open(output, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(texts)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error


def _as_text(item: "Completion", number: int | None) -> str:
    """Prompt and continuation as text, with a headline if there are several prompts and this one has a number."""
    headline = ""
    if number is not None:
        tokens = len(item.continuation.tokens)
        headline = (
            f"=== prompt {number}: {tokens} new tokens, stopped by {item.continuation.stopped_by}\n"
        )
    return f"{headline}{item.prompt}{item.text}\n"


def _as_record(item: "Completion") -> str:
    record = {"prompt": item.prompt, "text": item.text, "tokens": item.continuation.tokens}
    return (
        json.dumps(record | {"stopped_by": item.continuation.stopped_by}, ensure_ascii=False) + "\n"
    )
