"""Text to .bin/.idx, from the start of the process to files on disk: `megascratch preprocess` beside other ways.

    megatron    what Megatron-LM's preprocess_data_fast.py does (megatron_fast.py); needs megatron-core and awkward
    gigatoken   json, gigatoken on all texts at once and one writer, in one process: the fastest known engine
    usual       json, Hugging Face's tokenizers and one writer, in one process

All make the same bytes (checked), with one byte-level BPE of 32,000 tokens trained here. The text is made here, too:
the standard library's sources, and seeded words of many scripts that never come again. When the sources come again,
other rare letters stand in them, so that one word in six is new. Sides run in turn; the result is the median ratio.
With two sizes, the steady rate is what the larger one has more, by the time that it takes more.

    python benchmarks/bench_preprocess.py [--megabytes 100] [--workers 1 2] [--sides megatron gigatoken usual]
    python benchmarks/bench_preprocess.py --megabytes 100 1000 --sides megatron --rounds 1
"""

import argparse
import importlib.util
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from alternate import Pair, alternate

from megascratch.data.tokens.token_files import TokenWriter, token_dtype

# Latin to Chinese
SCRIPTS = [
    range(0x61, 0x7B),
    range(0x430, 0x450),
    range(0x3B1, 0x3CA),
    range(0x4E00, 0x4E80),
]
DOCUMENT = 4000  # characters
RARE = "jkqvxz"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    here = [*(["megatron"] if importlib.util.find_spec("megatron") else []), *SIDES]
    parser.add_argument("--sides", nargs="*", choices=here, default=here)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs=3, metavar=("SIDE", "FOLDER", "OUT"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.only:
        side, folder, out = options.only
        SIDES[side](Path(folder), out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(
            "times from process start to files on disk; the most memory of all processes together"
        )
        found: dict[tuple[int, str], list[tuple[int, Pair]]] = {}
        for megabytes in options.megabytes:
            size = make_text(folder / "text.jsonl", megabytes * 10**6)
            if not (folder / "tokenizer.json").exists():
                train(folder)
            for kind in itertools.product(options.workers, options.sides):
                found.setdefault(kind, []).append(
                    (size, compare(folder, size, *kind, options.rounds))
                )
        for kind, pairs in found.items():
            steady(*kind, pairs)


def make_text(path: Path, size: int) -> int:
    """JSONL of at least `size` bytes; gives its bytes."""
    written = 0
    with path.open("wb") as file:
        for number, text in enumerate(texts()):
            written += file.write(json.dumps({"id": number, "text": text}).encode() + b"\n")
            if written >= size:
                return written
    raise AssertionError("the texts never end")


def texts() -> Iterator[str]:
    """Nine documents of Python to one of made-up words, again and again."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    for dice in map(random.Random, itertools.count()):
        others = str.maketrans(RARE, "".join(dice.sample(RARE, len(RARE))))
        for place, path in enumerate(sources):
            text = path.read_text(encoding="utf-8", errors="replace").translate(others)
            yield from (text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT))
            if place % 2 == 0:
                yield words(dice)


def words(dice: random.Random) -> str:
    letters = dice.choice(SCRIPTS)
    return " ".join(
        "".join(map(chr, dice.choices(letters, k=dice.randint(1, 9)))) for _ in range(DOCUMENT // 6)
    )


def train(folder: Path) -> None:
    """tokenizer.json, from the first 2,000 documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with (folder / "text.jsonl").open("rb") as file:
        tokenizer.train_from_iterator(
            (json.loads(line)["text"] for line in itertools.islice(file, 2000)), trainer
        )
    tokenizer.save(str(folder / "tokenizer.json"))


def compare(folder: Path, size: int, workers: int, side: str, rounds: int) -> Pair:
    """One line for one number of workers and one other way."""
    peaks: dict[str, list[Used]] = {"ours": [], side: []}
    script = [sys.executable, __file__, "--only", side, str(folder), str(folder / "theirs")]
    if side == "megatron":
        words = ("text.jsonl", "tokenizer.json", "theirs")
        tool = str(Path(__file__).with_name("megatron_fast.py"))
        script = [sys.executable, "-W", "ignore", tool, *(str(folder / word) for word in words)]
    ours, theirs = (
        partial(measured, command, peaks[name])
        for name, command in (
            ("ours", command(folder, workers, eod=side != "megatron")),
            (side, script),
        )
    )
    pair = alternate(ours, theirs, max(rounds, 2), warmup=1 if rounds > 1 else 0)
    for suffix in (".bin", ".idx"):
        pairs = [
            (folder / f"{name}{suffix}").read_bytes() for name in ("ours_text_document", "theirs")
        ]
        assert pairs[0] == pairs[1], f"{side}: {suffix} differs"
    used = [Used(*map(statistics.median, zip(*runs, strict=True))) for runs in peaks.values()]
    print(
        f"{size / 1e6:.0f} MB, {workers} worker{'s' if workers > 1 else ' '} beside {side:<10} {pair}   "
        f"{size / pair.ours / 1e6:.0f} and {size / pair.theirs / 1e6:.0f} MB/s   "
        f"memory {used[0].megabytes:.0f} and {used[1].megabytes:.0f} MB   "
        f"{used[0].seconds:.2f} and {used[1].seconds:.2f} s of CPU   same bytes",
        flush=True,
    )
    return pair


def steady(workers: int, side: str, pairs: list[tuple[int, Pair]]) -> None:
    """The rate that does not count the start, from a smaller and a larger text."""
    (small, quick), (large, slow) = pairs[0], pairs[-1]
    if large > small:
        rates = [
            (large - small) / (b - a) / 1e6
            for a, b in ((quick.ours, slow.ours), (quick.theirs, slow.theirs))
        ]
        print(
            f"{workers} workers beside {side}, steady: {rates[0]:.0f} and {rates[1]:.0f} MB/s, "
            f"{rates[0] / rates[1]:.2f}x"
        )


def command(folder: Path, workers: int, eod: bool) -> list[str]:
    flags = {
        "--input": folder / "text.jsonl",
        "--tokenizer-model": folder / "tokenizer.json",
        "--tokenizer-type": "HuggingFaceTokenizer",
        "--output-prefix": folder / "ours",
        "--workers": workers,
        "--log-interval": 10**9,
    }
    flat = [str(word) for pair in flags.items() for word in pair]
    return [
        sys.executable,
        "-m",
        "megascratch",
        "preprocess",
        *flat,
        *(["--append-eod"] if eod else []),
        "--overwrite",
    ]


class Used(NamedTuple):
    """By all processes of a command."""

    megabytes: float
    seconds: float
    """Of processors: the figure that other work on the machine disturbs least."""


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def measured(words: list[str], peaks: list[Used]) -> None:
    """Runs a command to its end; notes the most memory that its processes had together, and their time."""
    before = processor_seconds()
    process = psutil.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    peak = 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            peak = max(peak, sum(map(memory, [process, *process.children(recursive=True)])))
        time.sleep(0.05)
    assert process.returncode == 0, words
    peaks.append(Used(peak / 1e6, processor_seconds() - before))


def environment() -> dict[str, str]:
    """Modules are compiled once, as an installer does it, for all sides."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def memory(process: psutil.Process) -> int:
    """Bytes; pages that processes share are shared out among them, where the system knows (Linux)."""
    told = process.memory_full_info()
    return getattr(told, "pss", told.rss)


def usual(folder: Path, out: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eod = tokenizer.token_to_id("<|endoftext|>")
    with (
        (folder / "text.jsonl").open() as file,
        TokenWriter(out, token_dtype(tokenizer.get_vocab_size())) as writer,
    ):
        for line in file:
            writer.add_document([*tokenizer.encode(json.loads(line)["text"]).ids, eod])


def with_gigatoken(folder: Path, out: str) -> None:
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_json((folder / "tokenizer.json").read_text())
    with (folder / "text.jsonl").open() as file:
        documents = tokenizer.encode_batch(
            [json.loads(line)["text"] for line in file], parallel=False
        )
    eod = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["<|endoftext|>"]
    with TokenWriter(out, token_dtype(tokenizer.vocab_size)) as writer:
        for ids in documents:
            writer.add_document(np.append(np.asarray(ids), eod))


SIDES = {"gigatoken": with_gigatoken, "usual": usual}

if __name__ == "__main__":
    main()
