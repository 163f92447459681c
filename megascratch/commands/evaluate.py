"""`megascratch evaluate`: measures a checkpoint's bits per byte on held-out text, and compares with gzip and xz."""

import argparse
import gzip
import json
import lzma
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.commands.input_output import (
    BadLines,
    input_files,
    require_no_input,
)
from megascratch.commands.parsers.evaluate import COUNTED
from megascratch.commands.progress import Steps
from megascratch.config.errors import UserError
from megascratch.config.json_record import parse_object
from megascratch.data.text.documents import read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sources import find_sources
from megascratch.inference.evaluate import DocumentLoss, evaluate_documents
from megascratch.inference.load import load_for_inference, use_all_threads
from megascratch.runtime.atomic_file import explain_write_errors, write_atomically
from megascratch.tokenizer import Tokenizer, TokenizerSource
from megascratch.training.hardware import choose_device


class Document(NamedTuple):
    """A text and its position in the input, for messages."""

    text: str
    place: str


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    read = [*TokenizerSource.of(options).files(), *input_files(options)]
    require_no_input([("--output-json", options.output_json), ("--summary", options.summary)], read)
    previous = _read_summary(options.summary)  # fails before the evaluation if it cannot be read
    documents, bad_lines = _documents(options)
    device = choose_device(options.device, 0)
    use_all_threads()
    config, model, tokenizer = load_for_inference(options.load, device, TokenizerSource.of(options))
    texts = [document.text for document in documents]
    ids = [_encode(tokenizer, document, options.parse_special_tokens) for document in documents]
    started = time.monotonic()
    loss = evaluate_documents(
        model,
        config.data,
        texts,
        ids,
        tokenizer.eod,
        ends=not options.no_eod,
        stride=options.stride,
        batch_size=options.batch_size,
        progress=Steps("batches"),
    )
    seconds = time.monotonic() - started
    result = _result(loss, [text.encode() for text in texts])
    print(_table(loss, result, seconds, bad_lines))
    if options.summary:
        _write_json(options.summary, previous | result)
    if options.output_json:
        _write_json(
            options.output_json,
            result | {"bad_lines": bad_lines, "evaluation_seconds": round(seconds, 3)},
        )
    return 0


def _documents(options: argparse.Namespace) -> tuple[list[Document], int]:
    """Every text that is not empty, and the number of bad lines."""
    documents = []
    bad_lines = BadLines()
    key = options.json_key
    sources = find_sources(options.input, options.input_format)
    for record in read_records(sources, key, [key], options.sample_by):
        try:
            text = record.text(key)
            if not text:
                raise BadLine("empty text")
            documents.append(Document(text, record.place))
        except BadLine as reason:
            if options.strict:
                raise UserError(f"{record.place}: {reason} (--strict)") from reason
            bad_lines.add(f"{record.place}: {reason}")
    if not documents:
        advice = bad_lines.reasons.advice(sources, "--json-key")
        raise UserError(
            f"{', '.join(options.input)}: no document found, {bad_lines.count:,} bad lines{advice}"
        )
    bad_lines.print_rest()
    return documents, bad_lines.count


def _encode(tokenizer: Tokenizer, document: Document, parse_specials: bool) -> list[int]:
    try:
        return tokenizer.encode(document.text, parse_specials)
    except UserError as error:
        raise UserError(f"{document.place}: {error}") from error


def _result(loss: DocumentLoss, contents: Sequence[bytes]) -> dict[str, Any]:
    """Everything that is written; the names differ from those in a training summary."""
    one = [b"".join(contents)]
    return {
        "bits_per_byte": loss.bits_per_byte,
        "gzip_bits_per_byte": _packed(_gzip, contents),
        "xz_bits_per_byte": _packed(_xz, contents),
        "gzip_one_stream_bits_per_byte": _packed(_gzip, one),
        "xz_one_stream_bits_per_byte": _packed(_xz, one),
        "heldout_loss": loss.per_token,
        "heldout_nats": loss.nats,
        "heldout_tokens": loss.tokens,
        "heldout_documents": loss.documents,
        "heldout_bytes": loss.text_bytes,
    }


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 9)


def _xz(content: bytes) -> bytes:
    """Compresses like xz -9, but with a dictionary (64 MiB there) no larger than the content, which saves memory."""
    dictionary = min(max(len(content), 4096), 1 << 26)
    return lzma.compress(
        content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
    )


def _packed(pack: Callable[[bytes], bytes], contents: Sequence[bytes]) -> float:
    """Bits per byte of the contents, each compressed on its own."""
    packed_bytes = sum(len(pack(content)) for content in contents)
    return 8 * packed_bytes / sum(map(len, contents))


def _table(loss: DocumentLoss, result: dict[str, Any], seconds: float, bad_lines: int) -> str:
    lines = [f"{'bits per byte':<15}{'per document':>14}{'one stream':>14}"]
    lines.append(f"{'model':<15}{result['bits_per_byte']:>14.4f}{'':>14}")
    for name, key in (("gzip -9", "gzip"), ("xz -9", "xz")):
        alone = result[f"{key}_bits_per_byte"]
        stream = result[f"{key}_one_stream_bits_per_byte"]
        lines.append(f"{name:<15}{alone:>14.4f}{stream:>14.4f}")
    skipped = f", {bad_lines} bad line{'s' * (bad_lines != 1)} skipped" if bad_lines else ""
    lines.append("")
    lines.append(
        f"{loss.documents:,} documents{skipped}, {loss.text_bytes:,} bytes, {loss.tokens:,} tokens, "
        f"{loss.per_token:.4f} nats per token, {loss.tokens / max(seconds, 1e-9):,.0f} tokens/s"
    )
    lines.append(COUNTED)
    return "\n".join(lines)


def _read_summary(path: str | None) -> dict[str, Any]:
    if path is None or not Path(path).exists():
        return {}
    try:
        return parse_object(Path(path).read_bytes(), path)
    except (OSError, UserError) as error:
        raise UserError(f"--summary {path} cannot be merged into: {error}") from error


def _write_json(path: str, record: dict[str, Any]) -> None:
    with explain_write_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=2) + "\n")
