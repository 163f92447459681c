"""Whatever the format, the cut, the engine, and wherever a run is killed: the same bytes, or a clear sentence."""

import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.data.text.lines import part, stream, whole_lines
from megascratch.data.tokens.token_files import TokenReader, TokenWriter
from megascratch.tokenizer.simple import ByteTokenizer
from tests.support.preprocess_runs import JSONL, LINES, PACK, TEXTS, content, run, tool


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The corpus of TEXTS, written document by document."""
    prefix = tmp_path_factory.mktemp("expected") / "x"
    with TokenWriter(prefix, "uint16") as writer:
        for text in TEXTS:
            ids = list(text.encode())
            writer.add_document([*ids, 256] if ids else [])
    return content(prefix)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(("workers", "shard"), [(1, "100000"), (2, "700")])
def test_every_packing_and_every_cut_gives_the_same_bytes(
    tmp_path, expected, suffix, workers, shard
):
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(PACK[suffix](b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n").rstrip()))
    flags = ["--append-eod", "--shard-bytes", shard]
    assert content(run(tmp_path, path, workers=workers, flags=flags)) == expected
    assert not (tmp_path / "out.shards").exists()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shard", ["1000", "100000"])
def test_parquet_gives_the_same_bytes_whatever_its_row_groups(tmp_path, expected, suffix, shard):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(
        arrow.table({"other": list(range(300)), "text": TEXTS}), buffer, row_group_size=37
    )
    path = tmp_path / f"x.parquet{suffix}"
    path.write_bytes(PACK[suffix](buffer.getvalue()))
    assert content(run(tmp_path, path, flags=["--append-eod", "--shard-bytes", shard])) == expected


def test_rows_without_a_text_are_bad_and_a_missing_column_is_refused(tmp_path, capsys):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = arrow.array([b"a", None, b"\xff"], arrow.binary())
    parquet.write_table(arrow.table({"text": raw}), tmp_path / "x.parquet", row_group_size=1)
    assert len(TokenReader(run(tmp_path, tmp_path / "x.parquet"))) == 1
    said = capsys.readouterr().err
    assert (
        "x.parquet:2: key 'text' holds NoneType" in said
        and "x.parquet:3: not UTF-8: byte 0xff" in said
    )
    with pytest.raises(UserError, match=r"has no column 'body' \(it has 'text'\); nothing written"):
        run(tmp_path, tmp_path / "x.parquet", out="b", flags=["--json-keys", "body"])
    for damaged in (b"PAR1 no", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "y.parquet").write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"y\.parquet cannot be read as Parquet: .*nothing writ"
        ):
            run(tmp_path, tmp_path / "y.parquet", out="b")  # in one line, whatever the library says


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path, expected):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, 300, 20)):
        (folder / f"{number:02d}.jsonl").write_bytes(b"\n".join(LINES[start : start + 20]))
    (folder / "notes.pdf").write_bytes(b"no text")
    for name, word in (("a", tmp_path / "in"), ("b", tmp_path / "in" / "**" / "*.jsonl")):
        assert (
            content(run(tmp_path, word, out=name, flags=["--append-eod", "--shard-bytes", "900"]))
            == expected
        )
    for word, law in (
        (tmp_path / "in" / "*.xyz", "matches no file"),
        (folder / "no.jsonl", "No such file"),
    ):
        with pytest.raises(UserError, match=law):
            run(tmp_path, word, out="c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none of the 0 files in this folder ends in"):
        run(tmp_path, tmp_path / "empty", out="c")


def test_a_plain_text_file_is_a_document_or_one_for_each_line(tmp_path):
    """The documents together are the file, unless its lines are asked for without their ends."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx\r\ny")
    (tmp_path / "b.txt").write_bytes(b"z")
    whole, lines, bare = (
        TokenReader(
            run(
                tmp_path,
                tmp_path / "a.txt",
                tmp_path / "b.txt",
                out=how,
                flags=["--sample-by", how],
            )
        )
        for how in ("document", "line", "bare-line")
    )
    assert [bytes(whole.get(at).tolist()) for at in range(len(whole))] == [b"x\r\ny", b"z"]
    assert [bytes(lines.get(at).tolist()) for at in range(len(lines))] == [b"x\r\n", b"y", b"z"]
    assert [bytes(bare.get(at).tolist()) for at in range(len(bare))] == [b"x", b"y", b"z"]


def test_the_standard_input_is_read_to_its_end(tmp_path, expected):
    subprocess.run(
        tool(tmp_path, "--input", "-", "--workers", "1"),
        input=JSONL,
        check=True,
        capture_output=True,
    )
    assert content(tmp_path / "out_text_document") == expected
    assert [path.name for path in tmp_path.glob("*.shards")] == []


def test_a_list_of_texts_is_a_document_of_several_sequences(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"text": ["ab", "", "c"]}\n{"text": []}\n{"text": ["a", 1]}\n'
    )
    reader = TokenReader(run(tmp_path, tmp_path / "x.jsonl", flags=["--append-eod"]))
    assert reader.documents.tolist() == [0, 2, 2]
    assert [reader.get(at).tolist() for at in range(2)] == [[97, 98], [99, 256]]


@pytest.mark.parametrize(
    ("keep", "sequences"),
    [((), ["Hello Mr. Smith.", "Fine."]), (["--keep-newlines"], ["Hello Mr. Smith.\n", "Fine."])],
)
def test_sentences_are_sequences(tmp_path, keep, sequences):
    pytest.importorskip("sentencex")
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "Hello Mr. Smith.\nFine."}))
    run(tmp_path, tmp_path / "x.jsonl", flags=["--split-sentences", *keep])
    reader = TokenReader(tmp_path / "out_text_sentence")
    assert [
        ByteTokenizer().decode(reader.get(at).tolist()) for at in range(len(reader))
    ] == sequences
    with pytest.raises(UserError, match="--lang Klingon"):
        run(tmp_path, tmp_path / "x.jsonl", flags=["--split-sentences", "--lang", "Klingon"])


@pytest.mark.parametrize("seed", range(20))
def test_parts_that_meet_have_each_line_once_whatever_the_block(seed):
    dice = random.Random(seed)
    raw = b"".join(
        b"x" * dice.choice([0, 1, 5, 40]) + b"\n" for _ in range(30)
    ) + b"x" * dice.choice([0, 3])
    size, block, longest = dice.randint(1, 90), dice.randint(1, 50), dice.choice([8, 100])
    file = io.BytesIO(raw)
    cuts = [part(file, at, min(at + size, len(raw)), block) for at in range(0, len(raw), size)]
    shorter = b"".join(line[: max(longest, len(line))] for line in raw.splitlines(True))
    assert b"".join(itertools.chain(*cuts)) == shorter == raw
    kept = [
        line
        for piece in whole_lines(stream(io.BytesIO(raw), block), longest)
        for line in piece.splitlines()
    ]
    assert [min(len(line), longest + 1) for line in kept] == [
        min(len(x), longest + 1) for x in raw.splitlines()
    ]


def killed_after(command, seconds):
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode


def sweep(folder, expected, points):
    """Killed at each point (a share of a whole run's time), started again, until it is through."""
    path = folder / "x.jsonl"
    path.write_bytes(JSONL)
    command = tool(folder, "--input", str(path), "--workers", "2", "--overwrite")
    started = time.monotonic()
    assert killed_after(command, 600) == 0
    whole = time.monotonic() - started
    for point in points:
        code = killed_after(command, point * whole)
        while code:
            names = {path.name for path in folder.iterdir()} - {"x.jsonl", "out.shards"}
            assert names <= {
                f"out_text_document{suffix}" for suffix in (".bin", ".idx", ".json", ".digests")
            }
            code = killed_after(command, 600)
        assert content(folder / "out_text_document") == expected
        assert not (folder / "out.shards").exists()


def test_a_run_killed_at_any_point_goes_on_to_the_same_bytes(tmp_path, expected):
    sweep(tmp_path, expected, [0.8])


@pytest.mark.deep
def test_a_run_killed_at_many_points_goes_on_to_the_same_bytes(tmp_path, expected):
    sweep(tmp_path, expected, [0.3 + 0.7 * place / 60 for place in range(60)])


def test_the_bytes_are_megatrons(tmp_path):
    """Golden values of the files that Megatron-LM 0.16.1 and 0.20 write for these ids: md5 of .bin and .idx."""
    dice = np.random.RandomState(1)
    documents = [dice.randint(0, 999, size=dice.randint(1, 120)).tolist() for _ in range(1500)]
    lines = [json.dumps({"text": " ".join(map(str, ids))}) for ids in documents]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    flags = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "1000", "--shard-bytes", "30000"]
    found = content(run(tmp_path, tmp_path / "x.jsonl", workers=2, flags=flags))
    assert [hashlib.md5(raw).hexdigest()[:12] for raw in found] == ["026546817131", "3dfaa3b9e095"]


class Killed(BaseException):
    """Stands for kill -9: nothing that comes after it is run."""


def stopping_at(monkeypatch, step):
    """Every file operation that changes a name counts; at number `step` the run ends there and then."""
    left = itertools.count(step, -1)

    def counted(function):
        def wrapper(*args, **options):
            if next(left) <= 0:
                raise Killed
            return function(*args, **options)

        return wrapper

    for owner, name in ((os, "replace"), (Path, "unlink"), (Path, "rmdir"), (os, "fsync")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Killed, where a generator closes
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.deep)])
def test_every_file_operation_may_be_the_last_one(tmp_path, expected, monkeypatch, first, stride):
    """`first`: no older output lies there. A step is one rename, removal or flush of the whole run, merge included."""
    (tmp_path / "x.jsonl").write_bytes(JSONL)
    flags = ["--append-eod", "--shard-bytes", "20000", "--overwrite"]
    monkeypatch.setattr("megascratch.data.preprocess.merge.CHECKPOINT_BYTES", 5000)
    for step in itertools.count(step=stride):
        if first:
            for path in tmp_path.glob("out_*"):
                path.unlink()
        try:
            with monkeypatch.context() as patch:
                stopping_at(patch, step)
                run(tmp_path, tmp_path / "x.jsonl", flags=flags)
            break
        except Killed:
            run(tmp_path, tmp_path / "x.jsonl", flags=flags)
            assert content(tmp_path / "out_text_document") == expected
    assert step > 20
