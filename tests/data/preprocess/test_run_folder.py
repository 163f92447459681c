"""Runs that meet others, go on from others, are spread over processes or meet a full disk: the same bytes, or no."""

import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.data.preprocess.run_folder import locked
from megascratch.data.preprocess.work_units import LEAF_BYTES
from megascratch.data.tokens.token_files import TokenReader
from tests.support.preprocess_runs import JSONL, content, run, tool

FLAGS = ["--append-eod", "--shard-bytes", "700"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process writes in one shard."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "x.jsonl").write_bytes(JSONL)
    return content(run(folder, folder / "x.jsonl", flags=["--append-eod"]))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(JSONL)
    return tmp_path / "x.jsonl"


def encode_share(folder, path, share, *flags):
    words = [
        "--output-prefix",
        str(folder / "out"),
        "--tokenizer-type",
        "ByteTokenizer",
        "--workers",
        "1",
    ]
    return call("preprocess", ["--input", str(path), *words, *FLAGS, "--shard", share, *flags])


@pytest.mark.parametrize("shares", [["0/1"], ["1/2", "0/2"], ["0/3", "2/3"]])
def test_shards_of_many_processes_merge_to_the_same_bytes(tmp_path, path, expected, shares):
    """A share that nobody encoded is encoded by the run that merges."""
    for share in shares:
        encode_share(tmp_path, path, share)
        assert not list(tmp_path.glob("out_*"))
    assert content(run(tmp_path, path, flags=FLAGS)) == expected
    assert [found.name for found in tmp_path.glob("*.shards")] == []


def test_a_second_process_on_the_same_output_is_refused(tmp_path, path, expected):
    with locked(tmp_path / "out.shards"):
        for flags in ([], ["--overwrite"]):
            with pytest.raises(
                UserError, match=rf"out is being written by another process \(process {os.getpid()}"
            ):
                run(tmp_path, path, flags=[*FLAGS, *flags])
        with pytest.raises(UserError, match="is being written by another process"):
            encode_share(tmp_path, path, "0/2")
    with locked(tmp_path / "out.shards", (0, 2)):
        with pytest.raises(UserError, match="is being written by another process"):
            run(tmp_path, path, flags=FLAGS)
        with pytest.raises(UserError, match="is being written by another process"):
            encode_share(tmp_path, path, "0/2")
        encode_share(tmp_path, path, "1/2")
    assert content(run(tmp_path, path, flags=FLAGS)) == expected


def test_an_output_that_is_complete_is_left_and_another_one_is_not_replaced_unasked(
    tmp_path, path, capsys
):
    prefix = run(tmp_path, path, flags=FLAGS)
    before = [os.stat(f"{prefix}.bin").st_mtime_ns, content(prefix)]
    capsys.readouterr()
    run(tmp_path, path, flags=FLAGS)
    assert "complete: " in capsys.readouterr().out
    for flags in (["--append-eod"], FLAGS[1:], [*FLAGS, "--max-document-bytes", "5"]):
        with pytest.raises(
            UserError,
            match=r"out_text_document\.bin exists and was not made from this input with these opt",
        ):
            run(tmp_path, path, flags=flags)
    path.write_bytes(JSONL)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="--overwrite replaces it"):
        run(tmp_path, path, flags=FLAGS)
    assert [os.stat(f"{prefix}.bin").st_mtime_ns, content(prefix)] == before
    path.write_bytes(b'{"text": "new"}')
    assert len(TokenReader(run(tmp_path, path, flags=["--overwrite"]))) == 1
    names = {f"{prefix.name}{suffix}" for suffix in (".bin", ".idx", ".json", ".digests")}
    assert {found.name for found in tmp_path.iterdir()} == {"x.jsonl", *names}


@pytest.mark.parametrize(("workers", "shard_bytes"), [(1, 700), (2, 700), (1, 1 << 26)])
def test_the_manifest_has_the_hash_of_every_input(tmp_path, workers, shard_bytes):
    raws = {
        "a.jsonl": JSONL,
        "b.jsonl.gz": gzip.compress(JSONL),
        "c.jsonl": b'{"text": "c"}',
        "d.jsonl": b"",
    }
    for name, raw in raws.items():
        (tmp_path / name).write_bytes(raw)
    flags = ["--shard-bytes", str(shard_bytes)]
    prefix = run(tmp_path, *(tmp_path / name for name in raws), workers=workers, flags=flags)
    manifest = json.loads(Path(f"{prefix}.json").read_bytes())
    leaf = manifest["hashed_bytes"]
    assert leaf == min(shard_bytes, LEAF_BYTES)
    for told, (name, raw) in zip(manifest["inputs"], raws.items(), strict=True):
        leaves = [hashlib.sha256(raw[at : at + leaf]).digest() for at in range(0, len(raw), leaf)]
        assert told["sha256"] == hashlib.sha256(b"".join(leaves)).hexdigest(), name


def test_shards_of_another_run_are_not_used(tmp_path, path, expected):
    encode_share(tmp_path, path, "0/2", "--keep-newlines")
    with pytest.raises(
        UserError, match=r"holds the shards of an interrupted run with another keep-newlines;"
    ):
        run(tmp_path, path, flags=FLAGS)
    assert content(run(tmp_path, path, flags=[*FLAGS, "--overwrite"])) == expected


@pytest.mark.parametrize("kind", ["bin", "lengths", "sequences"])
def test_a_shard_that_is_not_what_was_written_is_given_up(tmp_path, path, expected, kind):
    encode_share(tmp_path, path, "0/1")
    shard = tmp_path / "out.shards" / f"00000003.0.{kind}"
    raw = bytearray(shard.read_bytes())
    raw[0] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(
        UserError, match=r"00000003\.\* differs from what was written .* the same command"
    ):
        run(tmp_path, path, flags=FLAGS)
    assert content(run(tmp_path, path, flags=FLAGS)) == expected


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(tmp_path, path, expected):
    command = tool(tmp_path, "--input", str(path), "--workers", "2")

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = subprocess.run(command, preexec_fn=no_room, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "cannot be written: File too large; finished shards are kept" in done.stderr
    )
    assert not list(tmp_path.glob("out_*"))
    subprocess.run(command, check=True, capture_output=True)
    assert content(tmp_path / "out_text_document") == expected


def test_a_bomb_is_one_bad_line_and_memory_stays_flat(tmp_path):
    """150 MB in one line, packed in 150 KB, with 800 MB of address space, most of it the libraries'."""
    good = gzip.compress(b'{"text": "ok"}\n')
    bomb = tmp_path / "x.jsonl.gz"
    bomb.write_bytes(good + gzip.compress(b"x" * (1 << 20)) * 150 + gzip.compress(b"\n") + good)
    command = [*tool(tmp_path, "--input", str(bomb), "--workers", "2"), "--shard-bytes", "100000"]

    def little_room():
        resource.setrlimit(resource.RLIMIT_AS, (800 << 20, 800 << 20))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, preexec_fn=little_room, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert f"skipped {bomb}:2: longer than 67,108,864 bytes (--max-document-bytes)" in done.stderr
    assert len(TokenReader(tmp_path / "out_text_document")) == 2


def test_a_broken_packed_file_is_named_and_nothing_is_written(tmp_path):
    whole = gzip.compress(JSONL)
    for name, raw, reason in (
        ("a", whole[:-9], "Compressed file ended"),
        ("b", b"no", "Not a gzipped file"),
    ):
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(raw)
        for shard_bytes in ("100", "100000"):
            with pytest.raises(UserError, match=rf"{name}\.jsonl\.gz cannot be read.*: {reason}"):
                run(tmp_path, path, flags=["--shard-bytes", shard_bytes, "--overwrite"])
    assert not list(tmp_path.glob("out_*"))


def test_a_line_is_numbered_in_its_file_wherever_it_is_cut(tmp_path):
    lines = [
        b"{" if number % 50 == 7 else json.dumps({"text": "x" * (number % 9)}).encode()
        for number in range(400)
    ]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines))
    run(
        tmp_path,
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
        workers=2,
        flags=["--shard-bytes", "500"],
    )
    found = [
        line.split(": ")[0] for line in (tmp_path / "out_bad_lines.txt").read_text().splitlines()
    ]
    assert found == [
        f"{tmp_path}/{name}.jsonl:{number + 1}" for name in "ab" for number in range(7, 400, 50)
    ]


@pytest.mark.deep
def test_ray_gives_the_same_bytes_and_survives_a_worker(tmp_path, path, expected):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    script = Path(tmp_path / "drive.py")
    script.write_text(DRIVE)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path]),
    }
    command = [
        sys.executable,
        str(script),
        str(path),
        str(tmp_path / "out"),
        str(tmp_path / "died"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert content(tmp_path / "out_text_document") == expected


DRIVE = """
import os, signal, sys
import ray
import megascratch.data.preprocess.executors as engines
from megascratch.commands import call

path, prefix, died = sys.argv[1:]
whole = engines._summary

def _dies_once(job, piece):
    if piece.number == 3 and not os.path.exists(died):
        open(died, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(job, piece)

engines._summary = _dies_once
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
words = ["--tokenizer-type", "ByteTokenizer", "--append-eod", "--shard-bytes", "2000", "--engine", "ray"]
sys.exit(call("preprocess", ["--input", path, "--output-prefix", prefix, *words]))
"""
