"""The quickstart's corpus is the same on every run, holds out whole files, and leaves tests out."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart" / "corpus.py"


def make(root, output, *more):
    command = [sys.executable, str(SCRIPT), "--output-dir", str(output), "--root", str(root), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    files = [output / "train.jsonl", output / "heldout.jsonl"]
    return done.stdout, [
        [json.loads(line) for line in file.read_text().splitlines()] for file in files
    ]


def test_files_are_held_out_by_their_name_alone(tmp_path):
    root = tmp_path / "lib"
    names = [f"{folder}module{number}.py" for folder in ("", "a/", "b/c/") for number in range(60)]
    for name in [
        *names,
        "test/x.py",
        "a/tests/x.py",
        "idlelib/idle_test/x.py",
        "site-packages/x.py",
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# é {name}\n")
    (root / "latin.py").write_bytes(b"# \xe9\n")
    (root / "empty.py").write_text("\n")
    out, (train, heldout) = make(root, tmp_path / "one")
    assert [record["name"] for record in train] == sorted(record["name"] for record in train)
    assert sorted(record["name"] for record in train + heldout) == sorted(names)
    assert all(record["text"] == f"# é {record['name']}\n" for record in train + heldout)
    assert 1 <= len(heldout) <= 0.1 * len(names)
    size = sum(len(record["text"].encode()) for record in heldout)
    assert f"heldout.jsonl: {len(heldout)} files, {size} bytes of text" in out
    (root / "module0.py").write_text("changed")
    (root / "another.py").write_text("new")
    again = make(root, tmp_path / "two")[1][1]
    assert (
        {record["name"] for record in heldout}
        <= {record["name"] for record in again}
        <= {*names, "another.py"}
    )


def test_a_number_of_files_takes_the_first_ones_of_the_whole(tmp_path):
    root = tmp_path / "lib"
    root.mkdir()
    for number in range(30):
        (root / f"module{number:02}.py").write_text(f"# {number}\n")
    _, whole = make(root, tmp_path / "whole")
    _, part = make(root, tmp_path / "part", "--files", "12")
    first = sorted(record["name"] for records in whole for record in records)[:12]
    assert sorted(record["name"] for records in part for record in records) == first
