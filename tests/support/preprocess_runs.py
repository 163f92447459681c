"""Small inputs for `megascratch preprocess`, and runs of it."""

import bz2
import gzip
import json
import lzma
import sys
from pathlib import Path

import pytest

from megascratch.commands import call

TEXTS = [f"{number} é😀\n" * (number % 7) for number in range(300)]
LINES = [json.dumps({"text": text, "other": number}).encode() for number, text in enumerate(TEXTS)]
JSONL = b"\n".join(LINES) + b"\n"
SUFFIXES = (".bin", ".idx")
ROOT = Path(__file__).parents[2]


def zstd(raw):
    if sys.version_info >= (3, 14):
        return pytest.importorskip("compression.zstd").compress(raw)
    return pytest.importorskip("backports.zstd").compress(raw)


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def run(folder, *inputs, out="out", workers=1, flags=()):
    """Gives the prefix of the corpus."""
    words = [
        "--output-prefix",
        str(folder / out),
        "--tokenizer-type",
        "ByteTokenizer",
        "--workers",
        str(workers),
    ]
    assert call("preprocess", ["--input", *map(str, inputs), *words, *flags]) == 0
    return folder / f"{out}_text_document"


def content(prefix):
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES]


def tool(folder, *flags):
    script = str(ROOT / "tools" / "preprocess_data.py")
    words = [
        "--output-prefix",
        str(folder / "out"),
        "--tokenizer-type",
        "ByteTokenizer",
        "--append-eod",
    ]
    return [sys.executable, script, *words, "--shard-bytes", "700", *flags]
