"""Input that nobody should have made, workers that die: read, or a counted skip, or one clear sentence; no halves."""

import multiprocessing
import os
import resource
import subprocess
import threading

import pytest

from megascratch.config.errors import UserError
from megascratch.data.preprocess.executors import on_processes
from megascratch.data.tokens.token_files import TokenReader
from tests.support.preprocess_runs import JSONL, content, run, tool

END = 256
OK = b'{"text": "ok"}\n'
READ = {
    "an escaped NUL is a character": (b'{"text": "a\\u0000b"}\n', [[97, 0, 98, END]], None),
    "a bare NUL is no JSON": (
        b'{"text": "a\x00b"}\n' + OK,
        [[111, 107, END]],
        ":1: broken JSON: Invalid control",
    ),
    "bytes that are no UTF-8": (
        b'{"text": "\xff"}\n' + OK,
        [[111, 107, END]],
        ":1: not UTF-8: byte 0xff at column 11",
    ),
    "half of a surrogate pair": (
        OK + b'{"text": "\\ud800"}\n',
        [[111, 107, END]],
        ":2: key 'text' holds half a surr",
    ),
    "a byte order mark": (b"\xef\xbb\xbf" + OK, [[111, 107, END]], None),
    "a byte order mark inside": (OK + b"\xef\xbb\xbf" + OK, [[111, 107, END]], ":2: broken JSON"),
    "line ends of Windows": (OK.replace(b"\n", b"\r\n") * 2, [[111, 107, END]] * 2, None),
    "an empty line": (b"\n" + OK + b"\r\n", [[111, 107, END]], ":1: empty line"),
    "one token": (b'{"text": "a"}', [[97, END]], None),
}


@pytest.mark.parametrize(("raw", "documents", "said"), READ.values(), ids=READ)
def test_each_line_is_a_document_or_a_counted_skip(tmp_path, capsys, raw, documents, said):
    (tmp_path / "x.jsonl").write_bytes(raw)
    reader = TokenReader(run(tmp_path, tmp_path / "x.jsonl", flags=["--append-eod"]))
    assert [reader.get(at).tolist() for at in range(len(reader))] == documents
    assert (said is None) == (not (tmp_path / "out_bad_lines.txt").exists())
    assert said is None or f"x.jsonl{said}" in capsys.readouterr().err


def test_empty_documents_are_counted_and_have_no_sequence(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": ""}\n' + OK + b'{"text": ""}\n')
    reader = TokenReader(run(tmp_path, tmp_path / "x.jsonl", flags=["--append-eod"]))
    assert reader.documents.tolist() == [0, 0, 1, 1] and len(reader) == 1
    assert reader.get(0).tolist() == [111, 107, END] and reader.bin_bytes == 6


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"\x00" * 5000])
def test_a_file_without_a_document_is_refused_and_one_beside_others_is_read_over(tmp_path, raw):
    (tmp_path / "x.jsonl").write_bytes(raw)
    with pytest.raises(
        UserError, match=r"x\.jsonl: no document, [0-9]+ bad lines; nothing written"
    ):
        run(tmp_path, tmp_path / "x.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
    (tmp_path / "y.jsonl").write_bytes(OK)
    assert len(TokenReader(run(tmp_path, tmp_path / "x.jsonl", tmp_path / "y.jsonl"))) == 1


def test_a_line_of_a_gigabyte_is_one_bad_line_in_little_memory(tmp_path):
    """The line lies in a sparse file; address space 800 MB, most of it the libraries'."""
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(OK + b'{"text": "')
        file.truncate(1 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b'"}\n' + OK)

    def little_room():
        resource.setrlimit(resource.RLIMIT_AS, (800 << 20, 800 << 20))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [
        *tool(tmp_path, "--input", str(path), "--workers", "1"),
        "--shard-bytes",
        str(1 << 26),
    ]
    done = subprocess.run(
        command, preexec_fn=little_room, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert f"skipped {path}:2: longer than 67,108,864 bytes (--max-document-bytes)" in done.stderr
    assert len(TokenReader(tmp_path / "out_text_document")) == 2


def born_since(others):
    """Child processes of this one; the ranks of other tests are children, too."""
    return [child for child in multiprocessing.active_children() if child not in others]


def test_the_pieces_of_a_worker_that_dies_are_done_again(tmp_path, monkeypatch):
    others = multiprocessing.active_children()

    def with_a_death(job, pieces, count):
        events = on_processes(job, pieces, count)
        yield next(events)
        born_since(others)[0].kill()
        yield from events

    (tmp_path / "x.jsonl").write_bytes(JSONL)
    flags = ["--append-eod", "--shard-bytes", "700"]
    expected = content(run(tmp_path, tmp_path / "x.jsonl", out="whole", flags=flags))
    monkeypatch.setattr("megascratch.commands.preprocess.on_processes", with_a_death)
    assert content(run(tmp_path, tmp_path / "x.jsonl", workers=2, flags=flags)) == expected


def test_a_piece_on_which_every_worker_dies_ends_the_run(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(OK)
    done, others = threading.Event(), multiprocessing.active_children()

    def kill_all():  # ten: a run that goes on behind the third ends, and the test with it
        killed = set()
        while len(killed) < 10 and not done.wait(0.01):
            for child in born_since(others):
                child.kill()
                killed.add(child.pid)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(
            UserError, match=r"3 worker processes died on .*x\.jsonl from byte 0 on \(exit code -9"
        ):
            run(tmp_path, tmp_path / "x.jsonl", workers=2)
    finally:
        done.set()
        killer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
