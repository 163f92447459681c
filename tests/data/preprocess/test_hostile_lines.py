"""Thirty kinds of bad lines and a bomb between good ones: each is skipped with its place, every good one is kept, and
memory stays within a cap.
"""

import gzip
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from megascratch.data.tokens.token_files import TokenReader
from tests.support.preprocess_runs import tool

LONG_LINE = Path(__file__).resolve().parents[3] / "benchmarks" / "bench_long_line.py"
BAD = {
    "empty": b"",
    "blanks": b" \t ",
    "a brace": b"{",
    "no end of text": b'{"text": "a',
    "no end of list": b'{"text": ["a"',
    "no end of object": b'{"text": "a"',
    "more behind it": b'{"text": "a"} x',
    "two objects": b'{"text": "a"}{"text": "b"}',
    "a comma too much": b'{"text": "a",}',
    "a comment": b'{"text": "a"} // b',
    "single quotes": b"{'text': 'a'}",
    "no quotes": b"{text: a}",
    "a control character": b'{"text": "\x01"}',
    "a zero byte": b'{"text": "\0"}',
    "no UTF-8": b'{"text": "\xff"}',
    "overlong UTF-8": b'{"text": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"text": "\xed\xa0\x80"}',
    "UTF-16": '{"text": "a"}'.encode("utf-16"),
    "half a surrogate pair": b'{"text": "\\ud800"}',
    "a broken escape": b'{"text": "\\x41"}',
    "deep": b'{"text": ' + b"[" * 100_000,
    "a giant number": b'{"n": ' + b"9" * 5000 + b', "text": "a"}',
    "a list": b'["text"]',
    "null": b"null",
    "a number": b"17",
    "another key": b'{"body": "a"}',
    "no key": b"{}",
    "no text": b'{"text": null}',
    "a number for a text": b'{"text": 3}',
    "an object for a text": b'{"text": {"text": "a"}}',
    "numbers in a list": b'{"text": ["a", 1]}',
    "a pickle": pickle.dumps("text", protocol=0).replace(b"\n", b" "),
    "too long": b'{"text": "' + b"x" * (1 << 18) + b'"}',
}
CAP = 900 << 20  # bytes of address space, most of it the libraries'


def little_room():
    resource.setrlimit(resource.RLIMIT_AS, (CAP, CAP))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_bad_line_is_skipped_with_its_place_and_every_good_one_is_kept(tmp_path, suffix):
    path = tmp_path / f"x.jsonl{suffix}"
    lines = [
        line
        for number, bad in enumerate(BAD.values())
        for line in (b'{"text": "good %d"}' % number, bad)
    ]
    content = b"\n".join(lines) + b"\n"
    if suffix:  # and a line of 100 MB that is packed in 100 kB
        bomb = gzip.compress(b"x" * (1 << 20)) * 100
        content = gzip.compress(content) + bomb + gzip.compress(b'\n{"text": "last"}\n')
    path.write_bytes(content)
    command = [
        *tool(tmp_path, "--input", str(path), "--workers", "2"),
        "--max-document-bytes",
        str(1 << 17),
    ]
    command[command.index("--shard-bytes") + 1] = "60000"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, preexec_fn=little_room, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = (tmp_path / "out_bad_lines.txt").read_text(errors="replace").splitlines()
    places = [int(line.removeprefix(f"{path}:").split(":")[0]) for line in told]
    assert places == [*range(2, 2 * len(BAD) + 1, 2), *([2 * len(BAD) + 1] if suffix else [])]
    assert all(len(line.split(": ", 1)[1]) > 8 for line in told), told
    reader = TokenReader(tmp_path / "out_text_document")
    texts = [bytes(reader.get(at).tolist()[:-1]).decode() for at in range(len(reader))]
    assert texts == [f"good {number}" for number in range(len(BAD))] + (["last"] if suffix else [])


def test_strict_stops_at_the_first_of_them_and_writes_nothing(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + b"\n".join(BAD.values()))
    done = subprocess.run(
        tool(tmp_path, "--input", str(path), "--strict"), capture_output=True, text=True
    )
    assert done.returncode == 2 and f"{path}:2: " in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out_text*"))


MOST_TIMES = 9  # a line's bytes; without care a ByteTokenizer took 11


def test_a_long_line_takes_no_more_memory_than_is_promised(tmp_path):
    """The peak of a process, less the peak of one with a short line; RLIMIT and clocks play no part."""
    done = subprocess.run(
        [sys.executable, str(LONG_LINE), "--megabytes", "40", "--tokenizer-type", "ByteTokenizer"],
        capture_output=True,
        text=True,
    )
    times = [float(line.split(": ")[-1].split()[0]) for line in done.stdout.splitlines()]
    assert len(times) == 2, done.stderr
    assert max(times) < MOST_TIMES, done.stdout
