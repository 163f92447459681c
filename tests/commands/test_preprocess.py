"""Preprocessing writes the same files with any number of workers, names every bad line, and ends cleanly."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.data.tokens.manifest import check_corpus
from megascratch.data.tokens.token_files import TokenReader
from megascratch.tokenizer import train
from megascratch.tokenizer.hugging_face import HuggingFaceTokenizer
from megascratch.tokenizer.registry import dump
from megascratch.tokenizer.simple import ByteTokenizer
from tests.support.byte_vocabularies import END, trained

ROOT = Path(__file__).parents[2]


def jsonl(path, records):
    """One line per record; bytes are written as they are."""
    lines = [
        record if isinstance(record, bytes) else json.dumps(record).encode() for record in records
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def run(path, *flags, tokenizer="ByteTokenizer", workers=1, out="out"):
    prefix = str(Path(path).parent / out)
    kind = ["--tokenizer-type", tokenizer] if tokenizer else []
    return call(
        "preprocess",
        ["--input", str(path), "--output-prefix", prefix, "--workers", str(workers), *kind, *flags],
    )


def documents(folder, name="out_text_document"):
    reader = TokenReader(folder / name)
    ends = [
        reader.documents[number : number + 2].tolist()
        for number in range(len(reader.documents) - 1)
    ]
    return [[reader.get(sequence).tolist() for sequence in range(*pair)] for pair in ends]


def test_text_becomes_one_sequence_per_document(tmp_path):
    assert (
        run(
            jsonl(tmp_path / "x.jsonl", [{"text": "ab"}, {"text": ""}, {"text": "é"}]),
            "--append-eod",
        )
        == 0
    )
    assert documents(tmp_path) == [[[97, 98, 256]], [], [[195, 169, 256]]]
    assert run(tmp_path / "x.jsonl", "--overwrite") == 0
    assert documents(tmp_path) == [[[97, 98]], [], [[195, 169]]]


def test_each_key_makes_a_corpus_of_its_own(tmp_path):
    records = [{"title": "a", "body": "bb"}, {"title": "c"}, {"title": "d", "body": "ee"}]
    run(jsonl(tmp_path / "x.jsonl", records), "--json-keys", "title", "body")
    assert documents(tmp_path, "out_title_document") == [[[97]], [[100]]]
    assert documents(tmp_path, "out_body_document") == [[[98, 98]], [[101, 101]]]


def test_compressed_text_and_several_files_are_read_in_order(tmp_path):
    first, second = tmp_path / "a.jsonl.gz", jsonl(tmp_path / "b.jsonl", [{"text": "b"}])
    first.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    run(first, "--input", str(first), second)
    assert documents(tmp_path) == [[[97]], [[98]]]


def test_the_files_are_the_same_for_any_number_of_workers(tmp_path):
    """Documents of very different sizes, so that workers finish out of order."""
    records = [
        {"text": "xyz " * (40_000 if number % 37 == 0 else number % 50)} for number in range(600)
    ]
    path = jsonl(tmp_path / "x.jsonl", [*records, b"{", {"text": "end"}])
    for workers in (1, 3):
        run(path, "--append-eod", workers=workers, out=f"w{workers}")
    for suffix in (".bin", ".idx", ".json"):
        one, three = (
            (tmp_path / f"w{workers}_text_document{suffix}").read_bytes() for workers in (1, 3)
        )
        assert one == three and len(one) > 0


BAD = [
    (b"{", "broken JSON: Expecting property name"),
    (b"", "empty line"),
    (b'{"body": "x"}', "no key 'text' (it has 'body')"),
    (b'{"text": 5}', "key 'text' holds int, not a text"),
    (b'{"text": "\xff"}', "not UTF-8: byte 0xff at column 11"),
    (b'{"text": "\\ud800"}', "key 'text' holds half a surrogate pair"),
    (b"[1]", "not a JSON object but list"),
    (b"  \t\r", "empty line"),
    (b"\0" * 100, "broken JSON: Expecting value"),
    (b'{"text": "\0"}', "broken JSON: Invalid control character"),
    (b'\xef\xbb\xbf{"text": "x"}', "broken JSON: Unexpected UTF-8 BOM"),
    ('{"text": "x"}'.encode("utf-16-le"), "broken JSON: Expecting property name"),
    (b'{"text": "x"', "broken JSON: Expecting ',' delimiter"),
    (b'{"text": "x"} {"text": "y"}', "broken JSON: Extra data"),
    (b"{'text': 'x'}", "broken JSON: Expecting property name"),
    (b'{"text": null}', "key 'text' holds NoneType, not a text"),
    (b'{"text": {"a": "x"}}', "key 'text' holds dict, not a text"),
    (b'{"text": ["x", null]}', "key 'text' holds NoneType, not a text"),
    (b'{"text": "x", "n": ' + b"[" * 100_000, "broken JSON: "),
    (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "broken JSON: "),
    (b"\x1f\x8b\x08\x00", "not UTF-8: byte 0x8b at column 2"),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_lines_are_named_counted_and_skipped(tmp_path, capsys, workers):
    good = {"text": "ok"}
    path = jsonl(tmp_path / "x.jsonl", [good, *(line for bad, _ in BAD for line in (bad, good))])
    assert run(path, workers=workers) == 0
    out, err = capsys.readouterr()
    assert documents(tmp_path) == [[[111, 107]]] * (len(BAD) + 1)
    listed = [
        f"skipped {line}" for line in (tmp_path / "out_bad_lines.txt").read_text().splitlines()
    ]
    reported = err.splitlines()
    assert len(listed) == len(BAD) and sorted(reported[:20]) == sorted(listed[:20])
    assert reported[20:] == [
        f"skipped {len(BAD) - 20} more; all are in {tmp_path}/out_bad_lines.txt"
    ]
    for place, (line, (_, reason)) in enumerate(zip(listed, BAD, strict=True)):
        assert line.startswith(f"skipped {path}:{2 * place + 2}: {reason}")
    assert out.splitlines()[-2].startswith("22 documents, 44 tokens, 44 bytes of text")
    assert out.splitlines()[-2].endswith("21 bad lines")


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_stops_at_the_first_bad_line_and_writes_nothing(tmp_path, workers):
    path = jsonl(tmp_path / "x.jsonl", [{"text": "ok"}, *(bad for bad, _ in BAD)])
    with pytest.raises(UserError) as caught:
        run(path, "--strict", workers=workers)
    assert str(caught.value).startswith(f"{path}:2: {BAD[0][1]}")
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def test_what_the_tokenizer_does_not_know_is_a_bad_line(tmp_path, capsys):
    model = tmp_path / "c.json"
    train("CharTokenizer", ["ab"], model, eod=False)
    path = jsonl(tmp_path / "x.jsonl", [{"text": "ab"}, {"text": "abc"}])
    assert run(path, "--tokenizer-model", str(model), tokenizer=None) == 0
    assert f"skipped {path}:2: character 'c' (U+0063) at place 2" in capsys.readouterr().err
    path = jsonl(tmp_path / "x.jsonl", [{"text": "1 2"}, {"text": "5"}])
    run(path, "--vocab-size", "5", "--overwrite", tokenizer="NullTokenizer")
    assert documents(tmp_path) == [[[1, 2]]]


def test_the_manifest_tells_what_the_corpus_was_made_with(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"text": "abc"}, {"text": "zé"}, b"{"])
    run(path, "--append-eod")
    manifest = json.loads((tmp_path / "out_text_document.json").read_text())
    tokenizer, raw = ByteTokenizer(), Path(path).read_bytes()
    tree = hashlib.sha256(hashlib.sha256(raw).digest()).hexdigest()
    assert manifest.pop("tokenizer") == {
        "kind": "ByteTokenizer",
        "model": None,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": 257,
        "eod": 256,
    }
    assert manifest == {
        "documents": 2,
        "sequences": 2,
        "tokens": 8,
        "min_token": 0,
        "max_token": 256,
        "text_bytes": 6,
        "bad_lines": 1,
        "bin_bytes": 16,
        "json_key": "text",
        "append_eod": True,
        "split_sentences": None,
        "parse_special_tokens": False,
        "keep_newlines": False,
        "sample_by": "document",
        "max_document_bytes": 1 << 26,
        "hashed_bytes": 1 << 22,
        "plan": manifest["plan"],
        "inputs": [{"path": path, "bytes": len(raw), "rows": 3, "sha256": tree}],
    }
    reader = TokenReader(tmp_path / "out_text_document")
    check_corpus(reader, 257, tokenizer.fingerprint, None)
    with pytest.raises(UserError, match=r"sequence 0, token . has id 256"):
        check_corpus(reader, 256, tokenizer.fingerprint, None)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("content", [b"", b"{\n\n"])
def test_no_document_is_refused_and_the_old_files_stay(tmp_path, content, workers):
    run(jsonl(tmp_path / "x.jsonl", [{"text": "old"}]))
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.jsonl: no document, \d bad lines.*; nothing written"):
        run(tmp_path / "x.jsonl", "--overwrite", workers=workers)
    assert documents(tmp_path) == [[[111, 108, 100]]]
    assert not (tmp_path / "out.shards").exists()


@pytest.mark.parametrize(
    ("flags", "law"),
    [
        (["--tokenizer-type", "CharTokenizer"], "needs --tokenizer-model"),
        (["--tokenizer-type", "ByteTokenizer", "--workers", "0"], r"--workers \(0\)"),
        (["--tokenizer-type", "ByteTokenizer", "--json-keys", "a", "a"], "name each once"),
        (["--tokenizer-model", "nowhere.model"], "nowhere.model cannot be read"),
        (
            ["--tokenizer-model", "{}/c.json", "--append-eod"],
            "--append-eod: this CharTokenizer has no end-of-document id",
        ),
        (
            ["--tokenizer-type", "ByteTokenizer", "--input", "nowhere.jsonl"],
            r"nowhere\.jsonl cannot be read: No such",
        ),
        (
            ["--tokenizer-type", "ByteTokenizer", "--output-prefix", "{}/x.jsonl/y"],
            "cannot be written",
        ),
        (
            ["--tokenizer-type", "ByteTokenizer", "--shard", "2/2"],
            "--shard 2/2 must be I/N with I from 0 to N - 1",
        ),
        (
            ["--tokenizer-type", "ByteTokenizer", "--shard", "0/2", "--engine", "ray"],
            "remove --shard",
        ),
        (["--tokenizer-type", "ByteTokenizer", "--shard", "0/2", "--input", "-"], "- is a pipe"),
        (
            [
                "--tokenizer-type",
                "ByteTokenizer",
                "--input-format",
                "text",
                "--json-keys",
                "a",
                "b",
            ],
            "which has no keys",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, flags, law):
    train("CharTokenizer", ["ab"], tmp_path / "c.json", eod=False)
    path = jsonl(tmp_path / "x.jsonl", [{"text": "ab"}])
    with pytest.raises(UserError, match=law):
        call(
            "preprocess",
            [
                "--input",
                path,
                "--output-prefix",
                str(tmp_path / "out"),
                *(f.format(tmp_path) for f in flags),
            ],
        )
    assert not list(tmp_path.glob("*out*"))


def start(folder, pipe, *flags):
    """The tool in a process of its own, reading from a pipe that the test fills."""
    os.mkfifo(pipe)
    return subprocess.Popen(command(folder, pipe, *flags), stderr=subprocess.PIPE, text=True)


def command(folder, path, *flags):
    tool = [
        sys.executable,
        str(ROOT / "tools" / "preprocess_data.py"),
        "--tokenizer-type",
        "ByteTokenizer",
    ]
    return [
        *tool,
        "--input",
        str(path),
        "--output-prefix",
        str(folder / "out"),
        "--workers",
        "2",
        *flags,
    ]


def workers_of(process, count=1):
    """Worker processes, as soon as there are some (multiprocessing's resource tracker is none)."""
    while process.poll() is None:
        children = psutil.Process(process.pid).children()
        found = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        if len(found) >= count:
            return found
        time.sleep(0.01)
    raise psutil.NoSuchProcess(process.pid)


LINES = (json.dumps({"text": "x", "more": "x" * 1000}) + "\n").encode() * 1000  # ten shards


def feed(process, pipe, disturb, times):
    """Fills the pipe, `disturb`s before every write, and gives the exit code and what was said."""
    with open(pipe, "wb", buffering=0) as file:
        try:
            for _ in range(times):
                file.write(LINES)
                disturb()
        except (BrokenPipeError, psutil.NoSuchProcess):
            pass  # the run has ended already
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def test_the_pieces_of_a_killed_worker_are_done_again(tmp_path):
    process = start(tmp_path, tmp_path / "pipe", "--shard-bytes", "100000")
    kills = iter([lambda: workers_of(process)[0].kill()])
    assert feed(process, tmp_path / "pipe", lambda: next(kills, lambda: None)(), times=5)[0] == 0
    assert documents(tmp_path) == [[[120]]] * 5000
    assert not (tmp_path / "out.shards").exists()


def test_workers_that_die_again_and_again_on_a_piece_end_the_run(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(LINES)
    process = subprocess.Popen(
        command(tmp_path, tmp_path / "x.jsonl"), stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            workers_of(process)[0].kill()  # before it has loaded its libraries
    _, said = process.communicate()
    assert process.returncode == 2
    assert (
        "3 worker processes died on" in said
        and "exit code -9; -9 is often too little memory" in said
    )
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def test_workers_end_when_their_parent_is_killed(tmp_path):
    process = start(tmp_path, tmp_path / "pipe", "--shard-bytes", "100000")
    with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
        for _ in range(4):
            pipe.write(LINES)
        process.stderr.readline()  # progress: the workers are at work
        workers = workers_of(process, count=2)
        process.kill()
        process.wait()
    process.stderr.close()
    assert psutil.wait_procs(workers, timeout=600)[1] == []


@pytest.mark.parametrize("flags", [[], ["--strict"]])
def test_no_worker_outlives_its_run(tmp_path, flags):
    path = jsonl(tmp_path / "x.jsonl", [{"text": "x" * 1000}] * 1200 + [b"{"])
    before = psutil.Process().children()
    try:
        run(path, *flags, workers=2)
    except UserError:
        assert flags
    assert {
        child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())
    } <= set(before)


def test_a_tokenizer_that_fails_in_a_worker_names_the_lines(tmp_path, monkeypatch):
    def fail(self, texts, parse_specials, around):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(ByteTokenizer, "encode_batch", fail)
    path = jsonl(tmp_path / "x.jsonl", [{"text": "ab"}] * 3)
    with pytest.raises(
        UserError, match=r"lines 1 to 3 cannot be encoded: ZeroDivisionError: oh; nothing written"
    ):
        run(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_slower_engine_is_told_in_one_line_by_one_of_all_workers(tmp_path):
    # a split that the fast engine has not
    (tmp_path / "t.json").write_bytes(dump(trained("megatron-v1").record()))
    path = jsonl(tmp_path / "x.jsonl", [{"text": "a b c"}] * 200)
    words = [
        "--input",
        path,
        "--output-prefix",
        str(tmp_path / "out"),
        "--tokenizer-model",
        str(tmp_path / "t.json"),
        "--workers",
        "2",
        "--shard-bytes",
        "1000",
    ]
    said = subprocess.run(
        [sys.executable, "-m", "megascratch", "preprocess", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stderr
    assert said.startswith(
        "megascratch: warning: gigatoken cannot encode with this tokenizer (Unknown pre_tokenizer"
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize("parse", [False, True])
def test_a_document_cannot_forge_its_end_unless_it_may_and_the_manifest_tells(tmp_path, parse):
    tokenizer = HuggingFaceTokenizer(trained("gpt2").record())
    (tmp_path / "t.json").write_bytes(dump(tokenizer.record))
    path = jsonl(tmp_path / "x.jsonl", [{"text": f"a{END}b"}])
    flags = [
        "--tokenizer-model",
        str(tmp_path / "t.json"),
        "--append-eod",
        *(["--parse-special-tokens"] * parse),
    ]
    assert run(path, *flags, tokenizer=None) == 0
    ids = documents(tmp_path)[0][0]
    assert (ids[-1], ids.count(tokenizer.eod)) == (tokenizer.eod, 1 + parse)
    assert (
        json.loads((tmp_path / "out_text_document.json").read_text())["parse_special_tokens"]
        is parse
    )
    with pytest.raises(UserError, match="overwrite"):
        run(path, *flags[:3], *(["--parse-special-tokens"] * (not parse)), tokenizer=None)


def test_preprocessing_does_not_import_torch():
    code = (
        "import sys\n"
        "import megascratch.commands.preprocess, megascratch.commands.tokenizer\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
