"""A corpus in object storage reads like a local one, is fetched once, and every failure is one clear sentence."""

import multiprocessing
import threading

import fsspec
import numpy as np
import pytest

from megascratch.commands import main
from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.inspect.merge_split import merge
from megascratch.data.samples.build import open_splits
from megascratch.data.tokens import remote
from megascratch.data.tokens.fingerprint import unrecorded
from megascratch.data.tokens.manifest import read_manifest
from megascratch.data.tokens.remote import open_corpus
from megascratch.data.tokens.token_files import TokenReader
from megascratch.storage import store as store_module
from tests.support import s3_server
from tests.support.corpora import counting

URL = "memory://bucket/corpus"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A corpus of 40 documents with its manifest in fsspec's memory; blocks of 64 bytes, no pauses."""
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64)
    monkeypatch.setattr(store_module, "WAITS", (0.0, 0.0))
    merge([TokenReader(counting(tmp_path / "plain", [7, 1, 30, 5] * 10))], tmp_path / "local")
    system = fsspec.filesystem("memory")
    upload(system, tmp_path / "local")
    yield system
    system.rm("/bucket", recursive=True)


def upload(system, prefix, url=URL):
    for suffix in (".bin", ".idx", ".json"):
        system.pipe(f"{url}{suffix}", prefix.with_name(prefix.name + suffix).read_bytes())


def counted(monkeypatch, system):
    """The byte ranges that are asked for from now on."""
    asked, read = [], type(system).cat_file

    def noted(self, path, start, end):
        asked.append((path[-3:], start))
        return read(self, path, start, end)

    monkeypatch.setattr(type(system), "cat_file", noted)
    return asked


def test_every_way_of_reading_gives_the_local_ids(store, tmp_path):
    local, remote = TokenReader(tmp_path / "local"), open_corpus(URL, tmp_path / "cache")
    pieces = np.array([[3, 1, 4], [2, 0, 30], [38, 29, 1]])
    assert remote.read(pieces).tolist() == local.read(pieces).tolist()
    assert [remote.get(at).tolist() for at in range(40)] == [
        local.get(at).tolist() for at in range(40)
    ]
    assert remote.token_range() == local.token_range()
    assert read_manifest(remote) == read_manifest(local) and remote.prefix == URL


def test_only_the_blocks_that_are_read_are_fetched_and_only_once(store, tmp_path, monkeypatch):
    """Document 2 has bytes 32 to 152: blocks 0, 1 and 2."""
    asked = counted(monkeypatch, store)
    for _ in range(2):
        remote = open_corpus(URL, tmp_path / "cache")
        assert remote.get(2).tolist() == list(range(8, 38))
        assert remote.get(2, 8, 5).tolist() == list(range(16, 21))
    assert [start for name, start in asked if name == "bin"] == [0, 64, 128]
    assert len([start for name, start in asked if name == "idx"]) == -(-(34 + 20 * 40 + 8) // 64)


def test_training_reads_the_same_samples_and_keeps_the_same_index(store, tmp_path):
    for name, prefix in (("remote", URL), ("local", str(tmp_path / "local"))):
        data = DataConfig(
            train_data_path=[prefix], seq_length=9, data_cache_path=str(tmp_path / name)
        )
        train = open_splits(data, seed=1, vocab_size=999, train_samples=1).train
        samples = [train[number].tolist() for number in range(60)]
        if name == "remote":
            expected, identity = samples, train.source.identity
    assert samples == expected
    # of the objects, not of this machine
    assert open_corpus(URL, tmp_path / "elsewhere").identity == identity


def test_a_corpus_that_was_uploaded_again_is_read_anew(store, tmp_path):
    before = open_corpus(URL, tmp_path / "cache")
    before.get(0)
    merge([TokenReader(counting(tmp_path / "other", [9] * 40))], tmp_path / "new")
    upload(store, tmp_path / "new")
    after = open_corpus(URL, tmp_path / "cache")
    assert after.get(1).tolist() == list(range(9, 18)) and after.identity != before.identity
    with pytest.raises(UserError, match=r"corpus\.bin was replaced while it was read: start again"):
        before.get(39)


def with_digests(store, prefix):
    upload(store, prefix)
    store.pipe(f"{URL}.digests", prefix.with_name(f"{prefix.name}.digests").read_bytes())


def test_digests_are_fetched_and_ids_that_agree_with_them_are_read(store, tmp_path):
    with_digests(store, tmp_path / "local")
    local, remote = TokenReader(tmp_path / "local"), open_corpus(URL, tmp_path / "cache")
    assert remote.digests is not None and remote.digests.own == local.digests.own
    assert [remote.get(at).tolist() for at in range(40)] == [
        local.get(at).tolist() for at in range(40)
    ]
    pieces = np.array([[3, 1, 4], [38, 29, 1]])
    assert remote.read(pieces).tolist() == local.read(pieces).tolist()
    assert unrecorded({URL: remote}) == []


def test_a_corpus_without_digests_is_told_what_to_upload(store, tmp_path):
    (notice,) = unrecorded({URL: open_corpus(URL, tmp_path / "cache")})
    assert notice.endswith(f"upload the .digests that were made with the corpus as {URL}.digests")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json", ".digests"])
def test_a_byte_that_the_store_changed_is_refused(store, tmp_path, suffix):
    with_digests(store, tmp_path / "local")
    content = bytearray(store.cat(f"{URL}{suffix}"))
    content[40] ^= 1  # in .idx: a length, which breaks a rule of the format
    store.pipe(f"{URL}{suffix}", bytes(content))
    with pytest.raises(UserError) as caught:
        open_corpus(URL, tmp_path / "cache").get(2)
    assert f"{URL}{suffix} differs from what was written with the corpus: " in str(caught.value)
    assert "data record" not in str(caught.value), "it would make a damaged copy valid"


def test_a_byte_that_this_disk_changed_is_refused_by_the_next_process(store, tmp_path):
    with_digests(store, tmp_path / "local")
    open_corpus(URL, tmp_path / "cache").get(2)
    (copy,) = tmp_path.glob("cache/objects/*/corpus.bin")
    content = bytearray(copy.read_bytes())
    content[33] ^= 1
    copy.write_bytes(bytes(content))
    with pytest.raises(
        UserError, match=rf"{URL}.bin differs .*are damaged; remove its copy {copy.parent} and"
    ):
        open_corpus(URL, tmp_path / "cache").get(2)


def test_errors_that_pass_are_tried_again(store, tmp_path, monkeypatch):
    read, failures = (
        type(store).cat_file,
        iter([ConnectionError("reset"), TimeoutError("slow")] * 50),
    )
    turns = iter(range(10**6))

    def flaky(self, path, start=None, end=None):
        if next(turns) % 3 < 2:
            raise next(failures)
        return read(self, path, start, end)

    remote = open_corpus(URL, tmp_path / "cache")
    monkeypatch.setattr(type(store), "cat_file", flaky)
    assert remote.get(2).tolist() == list(range(8, 38))


def test_half_a_block_is_never_believed(store, tmp_path, monkeypatch):
    remote, read = open_corpus(URL, tmp_path / "cache"), type(store).cat_file
    with monkeypatch.context() as patch:
        patch.setattr(
            type(store), "cat_file", lambda self, path, start, end: read(self, path, start, end - 1)
        )
        with pytest.raises(
            UserError,
            match=r"bytes 0 to 64 cannot be read after 3 attempts: OSError: received 63 bytes",
        ):
            remote.get(0)
    assert remote.get(0).tolist() == list(range(7))


def test_threads_and_processes_share_a_cache(store, tmp_path, monkeypatch):
    asked = counted(monkeypatch, store)
    remote, found = open_corpus(URL, tmp_path / "cache"), []
    threads = [
        threading.Thread(target=lambda: found.append(remote.token_range())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(0, 429)] * 4
    starts = [start for name, start in asked if name == "bin"]
    assert sorted(set(starts)) == sorted(starts)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(
        target=lambda: open_corpus(URL, tmp_path / "cache").token_range() == (0, 429) or 1 / 0
    )
    child.start()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("url", "cache", "law"),
    [
        (
            "memory://bucket/none",
            "cache",
            r"none\.bin cannot be found: .*check address and credentials",
        ),
        ("memory://bucket/corpus", None, "give --data-cache-path, a folder with enough space"),
        (
            "nosuch://x/y",
            "cache",
            "nosuch://x/y: .*use s3://bucket/prefix or a path on this machine",
        ),
        ("memory://bucket/corpus", "file", "the cache .*file.* cannot be written: Not a directory"),
    ],
)
def test_what_cannot_be_read_is_told(store, tmp_path, url, cache, law):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=law):
        open_corpus(url, cache and tmp_path / cache)


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(
        fsspec.core, "url_to_fs", lambda url, **how: (_ for _ in ()).throw(ImportError("s3fs"))
    )
    with pytest.raises(UserError, match=r"s3:// needs s3fs, .*: pip install 'megascratch\[s3\]'"):
        open_corpus("s3://bucket/corpus", tmp_path)


def test_inspect_reads_object_storage_and_the_writing_verbs_refuse_it(store, tmp_path, capsys):
    assert main(["data", "inspect", URL, "--data-cache-path", str(tmp_path / "cache")]) == 0
    assert f"{URL}: 40 documents" in capsys.readouterr().out
    for words in (
        ["validate", URL],
        ["split", URL, "--documents", "40"],
        ["merge", "--input", URL],
    ):
        out = [] if words[0] == "validate" else ["--output-prefix", str(tmp_path / "out")]
        assert main(["data", *words, *out]) == 2
        assert "copy it to this machine" in capsys.readouterr().err


@pytest.fixture
def bucket(monkeypatch):
    """An empty one of a real server; s3fs speaks HTTP to it."""
    monkeypatch.setattr(store_module, "WAITS", ())
    with s3_server.server() as address:
        s3_server.speak_to(address)
        yield s3_server.emptied()
        s3_server.be_silent()


def test_s3_itself(tmp_path, bucket):
    merge([TokenReader(counting(tmp_path / "plain", [7, 1, 30, 5] * 10))], tmp_path / "local")
    upload(bucket, tmp_path / "local", "s3://bucket/deep/corpus")
    remote = open_corpus("s3://bucket/deep/corpus", tmp_path / "cache")
    assert remote.token_range() == (0, 429) and read_manifest(remote)["tokens"] == 430
    with pytest.raises(UserError, match=r"s3://bucket/none\.bin cannot be found"):
        open_corpus("s3://bucket/none", tmp_path / "cache")
