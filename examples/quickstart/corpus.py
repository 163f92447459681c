"""Real text that every machine has: the .py files of this interpreter's standard library, as JSONL.

Writes train.jsonl and heldout.jsonl, one document per file, {"text": ..., "name": relative path}, in the order of the
names. Which files are held out for validation is decided by a hash of the name alone, so that it never changes.
"""

import argparse
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "ensurepip",
}
HELD_OUT_PERCENT = 4


def is_held_out(name: str) -> bool:
    """The same answer for the same name on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each source file below `root`, by name; files that are empty or no UTF-8 are left out."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts):
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError:
                continue
            if text.strip():
                yield name.as_posix(), text


def main() -> None:
    """Writes both files and says what is in them."""
    parser = argparse.ArgumentParser(description="The standard library's source files as JSONL.")
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder for train.jsonl and heldout.jsonl"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(sysconfig.get_paths()["stdlib"]),
        help="default: the standard library",
    )
    parser.add_argument("--files", type=int, help="stop after so many files (default: all)")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    counts = {"train": [0, 0], "heldout": [0, 0]}
    paths = {kind: options.output_dir / f"{kind}.jsonl" for kind in counts}
    with (
        paths["train"].open("w", encoding="utf-8") as train,
        paths["heldout"].open("w", encoding="utf-8") as heldout,
    ):
        files = {"train": train, "heldout": heldout}
        for name, text in islice(documents(options.root), options.files):
            kind = "heldout" if is_held_out(name) else "train"
            files[kind].write(json.dumps({"text": text, "name": name}, ensure_ascii=False) + "\n")
            counts[kind][0] += 1
            counts[kind][1] += len(text.encode())
    for kind, (files_written, size) in counts.items():
        print(f"{paths[kind]}: {files_written} files, {size:,} bytes of text")


if __name__ == "__main__":
    main()
