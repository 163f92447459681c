"""How much memory `megascratch preprocess` takes for one long line, as a multiple of the line.

    python benchmarks/bench_long_line.py --megabytes 60 --tokenizer-type ByteTokenizer
    python benchmarks/bench_long_line.py --megabytes 60 --tokenizer-model tokenizer.json

The peak of a process that encodes a line of so many bytes, less the peak of one that encodes a line of one letter.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

CHARACTERS = {"ascii": "abcdefghijklmnop", "chinese": "一丁丂七丄丅丆万丈三上下丌不与丏"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=60, help="of the line (default: 60)")
    options, tokenizer = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "x.jsonl")
        for name, letters in CHARACTERS.items():
            source.write_text(json.dumps({"text": "a"}) + "\n")
            base = peak(source, tokenizer)
            write(source, letters, options.megabytes * 10**6)
            size = source.stat().st_size
            highest = peak(source, tokenizer)
            times = (highest - base) / size
            print(
                f"{name}: {size / 1e6:.0f} MB in a line took {highest / 1e6:.0f} MB, one letter {base / 1e6:.0f} MB: "
                f"{times:.1f} times the line",
                flush=True,
            )


def write(source: Path, letters: str, size: int) -> None:
    """Words of 1 to 9 letters, together about `size` bytes; written in blocks, for a child inherits this peak."""
    dice = random.Random(0)
    words = ["".join(dice.choices(letters, k=dice.randint(1, 9))) for _ in range(5000)]
    with source.open("wb") as file:
        file.write(b'{"text": "')
        while file.tell() < size:
            file.write(" ".join(dice.choices(words, k=10_000)).encode())
        file.write(b'"}\n')


def peak(source: Path, tokenizer: list[str]) -> int:
    """Bytes of memory that one process takes at most."""
    words = [
        "preprocess",
        "--input",
        str(source),
        "--output-prefix",
        str(source.with_name("out")),
        "--overwrite",
    ]
    command = [sys.executable, "-m", "megascratch", *words, "--workers", "1", *tokenizer]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return used.ru_maxrss * 1024


if __name__ == "__main__":
    main()
