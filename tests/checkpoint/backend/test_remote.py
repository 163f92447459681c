"""A step in a store is there when its manifest is: whole, from any layout, to any layout, and nobody sees less."""

import json
import os

import fsspec
import pytest
import torch
import torch.distributed as dist

from megascratch import checkpoint
from megascratch.checkpoint import DamagedError, DiskError, load_newest
from megascratch.checkpoint.format import file_format
from megascratch.checkpoint.format.manifest import FILE, signed
from megascratch.checkpoint.open_checkpoint import problems
from megascratch.checkpoint.retention import scan
from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.runtime.faults import armed
from megascratch.storage import store as store_module
from megascratch.storage.path import StoragePath, storage_path
from megascratch.storage.store import Store, StoreError
from tests.support import s3_server
from tests.support.random_shards import names_that_differ, shards_of_rank, world
from tests.support.rank_pool import on_ranks
from tests.support.signed_tables import changed_table

STATE = {"step": 7, "names": ["ä", None], "big": 2**63}


@pytest.fixture(scope="module")
def address():
    with s3_server.server() as running:
        s3_server.speak_to(running)
        yield running
        s3_server.be_silent()


@pytest.fixture
def folder(request, monkeypatch):
    """An empty folder of steps in a store, S3 where a test asks for it; no pauses."""
    monkeypatch.setattr(store_module, "WAITS", (0.0, 0.0))
    if getattr(request, "param", "memory") == "memory":
        yield storage_path("memory://bucket/run/checkpoints")
        fsspec.filesystem("memory").store.clear()
        return
    request.getfixturevalue("address")
    s3_server.emptied()
    yield storage_path(f"{s3_server.BUCKET}/run/checkpoints")


S3_TOO = pytest.mark.parametrize("folder", ["memory", "s3"], indirect=True)
ON_S3 = pytest.mark.parametrize("folder", ["s3"], indirect=True)


def client(folder):
    """fsspec's own, the one that `Store` uses."""
    return fsspec.core.url_to_fs(folder.url, use_listings_cache=False)[0]


def save(folder, step=7, seed=0, state=STATE):
    return checkpoint.save(folder, step, shards_of_rank(0, 1, seed, filled=True), state, world())


def load(path, seed=5):
    held = shards_of_rank(0, 1, seed, filled=False)
    state = checkpoint.load(path, held, world())
    assert names_that_differ(held) == []
    return state


def content(path):
    return Store(path.url).content(path.url)


def put(path, raw):
    Store(path.url).put(path.url, bytes(raw))


def flip(path, at=-3):
    raw = bytearray(content(path))
    raw[at] ^= 1
    put(path, raw)


def data_file(step):
    return step / next(
        name for name in Store(step.url).names(step.url) if name.endswith(".safetensors")
    )


def table_of(step):
    return step / next(name for name in Store(step.url).names(step.url) if name.endswith(".bin"))


def below(folder):
    """Everything in the store below a folder."""
    start = len(client(folder)._strip_protocol(folder.url)) + 1
    return sorted(name[start:] for name in client(folder).find(folder.url))


@S3_TOO
def test_what_is_saved_comes_back_in_any_cut_and_the_newest_sound_step_is_found(folder):
    assert checkpoint.list_steps(folder) == [] and checkpoint.latest(folder) is None
    assert (
        save(folder) == folder / "step_00000007"
        and save(folder, 100_000_000) == folder / "step_100000000"
    )
    assert [load(folder, seed) for seed in range(3)] == [STATE] * 3
    assert checkpoint.list_steps(str(folder)) == [
        folder / "step_100000000",
        folder / "step_00000007",
    ]
    assert checkpoint.resolve(str(folder) + "/") == folder / "step_100000000"
    assert list(problems(folder / "step_00000007")) == []
    with pytest.raises(UserError, match="already exists, and checkpoints are never overwritten"):
        save(folder, seed=1)
    assert load(folder / "step_00000007") == STATE


@ON_S3
def test_a_large_file_goes_in_parts_and_only_wanted_chunks_are_asked_for(folder, monkeypatch):
    monkeypatch.setattr(store_module, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(file_format, "CHUNK_BYTES", 1 << 20)
    whole = torch.arange(3 << 20, dtype=torch.float32).view(3 << 10, 1 << 10)  # 12 MiB

    def rows(start, stop, tensor):
        return ShardedTensor("w", tuple(whole.shape), Box((start, 0), (stop, 1 << 10)), tensor, 0)

    step = checkpoint.save(folder, 1, [rows(0, 3 << 10, whole)], {}, world())
    asked, read = [], Store.read
    monkeypatch.setattr(Store, "read", lambda *a, **k: asked.append(a[2:4]) or read(*a, **k))
    part = torch.zeros(300, 1 << 10)
    checkpoint.load(step, [rows(200, 500, part)], world())
    assert torch.equal(part, whole[200:500])
    assert sum(stop - start for start, stop in asked) < 3 << 20


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "table", "no table", "manifest"])
def test_a_damaged_step_is_passed_over_and_only_a_named_one_refused_with_object_and_chunk(
    folder, damage
):
    save(folder, 7), save(folder, 8, state={"newer": True})
    newer = folder / "step_00000008"
    data = newer / FILE if damage == "manifest" else data_file(newer)
    if "table" in damage:
        data = table_of(newer)
    if damage in ("delete", "no table"):
        Store(data.url).delete(data.url)
    elif damage == "cut":
        put(data, content(data)[:-1])
    else:
        flip(data)
    law = {
        "flip": "the bytes of .* do not match",
        "cut": "it has",
        "delete": "no such object",
        "table": "match their checksum",
        "no table": "no such object",
        "manifest": "sha256",
    }
    with pytest.warns(UserWarning, match=rf"skipped: .*step_00000008/.*{law[damage]}"):
        assert load(folder) == STATE
    with pytest.raises(DamagedError, match=rf"{data.name}.*{law[damage]}"):
        load(newer)
    assert [bool(step.problem) for step in scan(folder)] == [damage != "flip", False]
    aside = checkpoint.quarantine(newer)
    assert aside.name.startswith("damaged.step_00000008.") and content(aside / FILE)
    assert save(folder, 8, state={"again": True}) == newer and load(folder) == {"again": True}


@S3_TOO
def test_a_save_that_nobody_ended_is_invisible_until_the_next_writer_deletes_it(folder):
    sound = save(folder, 7)
    put(folder / "step_00000009" / "00000.abc.safetensors", b"half")
    assert checkpoint.list_steps(folder) == [sound] and load(folder) == STATE
    with pytest.raises(
        UserError, match=r"step_00000009 is not a checkpoint: manifest\.json cannot be read"
    ):
        load(folder / "step_00000009")
    lease = checkpoint.acquire(folder)
    lease.release()
    assert {name.split("/")[0] for name in below(folder)} == {"step_00000007", ".writer"}


def test_open_uploads_are_given_up_by_the_next_writer_and_others_are_not(address):
    system, folder = s3_server.emptied(), storage_path(f"{s3_server.BUCKET}/run")
    for name in ("run/step_00000001/x", "run2/step_00000001/x"):
        system.call_s3("create_multipart_upload", Bucket="bucket", Key=name)
    checkpoint.acquire(folder).release()
    left = system.call_s3("list_multipart_uploads", Bucket="bucket")["Uploads"]
    assert [upload["Key"] for upload in left] == ["run2/step_00000001/x"]


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("save.before_write:0:1:eio", "Input/output error"),
        (
            "save.write:0:*:eio",
            r"cannot be written after 3 attempts: OSError: .*Input/output error",
        ),
        ("save.write:0:1:raise", "fault point save.write"),
        ("save.after_write:0:1:raise", "fault point save.after_write"),
        ("save.before_commit:0:1:enospc", "No space left"),
    ],
)
def test_a_save_that_fails_leaves_nothing(folder, fault, complaint):
    with armed(fault), pytest.raises(Exception, match=complaint):
        save(folder)
    assert below(folder) == [] and checkpoint.list_steps(folder) == []
    assert save(folder)


@S3_TOO
def test_an_error_that_passes_is_tried_again_and_a_committed_step_outlives_a_later_error(
    folder, monkeypatch
):
    monkeypatch.setattr(file_format, "GROUP_CHUNKS", 2)
    with (
        armed("save.write:0:2:eio,save.after_commit:0:1:raise"),
        pytest.raises(Exception, match="after_commit"),
    ):
        save(folder)
    assert load(folder) == STATE and len(below(folder)) == 3


@ON_S3
@pytest.mark.parametrize("sent", [1, 6])
def test_half_an_object_never_gets_its_name(folder, monkeypatch, sent):
    """Neither what fits into one request nor what goes in parts."""
    monkeypatch.setattr(store_module, "PART_BYTES", 5 << 20)

    def content():
        yield memoryview(bytes(sent << 20))
        raise OSError("broken off")

    with pytest.raises(StoreError, match="broken off"):
        Store(folder.url).upload(f"{folder}/x", 9 << 20, content)
    assert below(folder) == []
    assert not client(folder).call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads")


@ON_S3
def test_what_a_fault_flips_in_a_store_is_found(folder):
    with armed("save.after_write:0:1:corrupt"):
        step = save(folder)
    assert "damaged" in "".join(problems(step))


@S3_TOO
def test_of_two_writers_of_one_step_one_commits(folder, monkeypatch):
    """The other one's manifest comes behind every look that this one takes."""
    create, other = Store.create, []

    def late(self, url, raw):
        if not other:
            other.append(None)
            other[0] = save(folder, state={"other": True})
        return create(self, url, raw)

    monkeypatch.setattr(Store, "create", late)
    with pytest.raises(UserError, match="step_00000007 already exists"):
        save(folder)
    assert load(folder) == {"other": True} and list(problems(folder / "step_00000007")) == []


@S3_TOO
def test_an_answer_that_was_lost_is_no_other_writer(folder, monkeypatch):
    """The manifest is created, the answer is not heard, the next attempt finds it there."""
    pipe, lost = client(folder).pipe_file, []

    def deaf(path, *given, **how):
        pipe(path, *given, **how)
        if path.endswith(FILE) and not lost:
            lost.append(path)
            raise TimeoutError("no answer")

    monkeypatch.setattr(client(folder), "pipe_file", deaf)
    assert load(save(folder)) == STATE and lost


def test_a_store_without_conditions_is_looked_at_first(monkeypatch):
    system = fsspec.filesystem("memory")
    pipe = type(system).pipe_file

    def plain(self, path, value, mode="overwrite"):
        if mode == "create":
            raise NotImplementedError
        pipe(self, path, value)

    monkeypatch.setattr(type(system), "pipe_file", plain)
    store = Store("memory://plain")
    assert store.create("memory://plain/a", b"1") and store.create("memory://plain/a", b"1")
    assert not store.create("memory://plain/a", b"2")
    system.store.clear()


def body(step, change):
    record = json.loads(content(step / FILE))["body"]
    change(record)
    put(step / FILE, signed(json.dumps(record).encode()))


def change_table(step, change):
    files = [step / FILE, table_of(step)]
    contents = changed_table(*map(content, files), change)
    for file, raw in zip(files, contents, strict=True):
        put(file, raw)


@pytest.mark.parametrize(
    "name", ["../secret", "/secret", "s3://bucket/secret", "..", "a/b", "manifest.json", "%2e%2e"]
)
def test_a_hostile_manifest_names_nothing_outside_of_its_step(folder, name, monkeypatch):
    step = save(folder)
    put(folder / "secret", b"x" * 100)

    change_table(step, lambda files, rows: files["name"].fill(name.encode()))
    asked, read = [], Store.read
    monkeypatch.setattr(Store, "read", lambda *a, **k: asked.append(a[1]) or read(*a, **k))
    with pytest.raises(DamagedError, match="is not a valid name of a data file"):
        load(step)
    assert set(asked) == {(step / FILE).url, table_of(step).url}


@pytest.mark.parametrize("name", ["../secret.bin", "s3://bucket/secret.bin", "..", "a/b.bin"])
def test_a_hostile_manifest_names_no_table_outside_of_its_step(folder, name, monkeypatch):
    step = save(folder)
    put(folder / "secret.bin", b"x" * 100)
    body(step, lambda record: record.update(table=name))
    asked, read = [], Store.read
    monkeypatch.setattr(Store, "read", lambda *a, **k: asked.append(a[1]) or read(*a, **k))
    with pytest.raises(DamagedError, match="is not a valid name of a table of chunks"):
        load(step)
    assert set(asked) == {(step / FILE).url}


def test_a_size_that_lies_makes_no_room(folder):
    step = save(folder)

    def lie(files, rows):
        files["bytes"] = files["header_bytes"] = 1 << 60

    change_table(step, lie)
    with pytest.raises(DamagedError):
        load(step)


@pytest.mark.parametrize(
    ("url", "law"),
    [
        ("s3://nobody/run", "The specified bucket does not exist; check address and credentials"),
        ("memory://bucket/none", "no checkpoint: memory://bucket/none is not a folder"),
        ("nosuch://bucket/run", "use s3://bucket/prefix or a path on this machine"),
    ],
)
def test_a_place_without_a_checkpoint_is_told(address, url, law):
    with pytest.raises(UserError, match=law):
        load(url)


@S3_TOO
def test_a_store_that_is_silent_is_not_a_store_without_checkpoints(folder, monkeypatch):
    save(folder, 7), save(folder, 8)

    def down(*given, **how):
        raise ConnectionError("unreachable")

    for name in ("ls", "cat_file", "info", "pipe_file"):
        with monkeypatch.context() as patch:
            patch.setattr(client(folder), name, down)
            if name == "ls":
                with pytest.raises(
                    StoreError,
                    match="cannot be listed after 3 attempts: ConnectionError: unreachable",
                ):
                    checkpoint.list_steps(folder)
            with pytest.raises(DiskError if name == "pipe_file" else UserError) as raised:
                save(folder, 9) if name == "pipe_file" else load(folder)
            assert "after 3 attempts" in str(raised.value) and not isinstance(
                raised.value, DamagedError
            )
    assert len(checkpoint.list_steps(folder)) == 2


def here(size):
    return world(size, dist.get_rank() if size > 1 else 0, dist.group.WORLD if size > 1 else None)


def save_on_ranks(url, address, size, seed):
    s3_server.speak_to(address)
    axis = here(size)
    return str(
        checkpoint.save(url, 7, shards_of_rank(axis.rank, size, seed, filled=True), STATE, axis)
    )


def load_on_ranks(url, address, size, seed):
    s3_server.speak_to(address)
    axis = here(size)
    held = shards_of_rank(axis.rank, size, seed, filled=False)
    found = load_newest(url, held, axis)
    return found.result, names_that_differ(held), len(found.passed_over)


def test_any_cut_over_any_ranks_loads_any_other_bit_for_bit(address):
    s3_server.emptied()
    url = f"{s3_server.BUCKET}/shared"
    assert on_ranks(2, save_on_ranks, url, address, 2, 0) == [f"{url}/step_00000007"] * 2
    assert len(Store(url).names(f"{url}/step_00000007")) == 4
    assert on_ranks(2, load_on_ranks, url, address, 2, 9) == [(STATE, [], 0)] * 2
    assert load(url) == STATE


def save_in_own_memory(url):
    axis = here(2)
    try:
        checkpoint.save(url, 7, shards_of_rank(axis.rank, 2, 0, filled=True), STATE, axis)
    except UserError as error:
        return str(error)
    return ""


def test_a_store_that_is_another_one_on_each_rank_is_refused():
    for told in on_ranks(2, save_in_own_memory, "memory://bucket/run"):
        assert "must be the same store on all ranks" in told


def test_a_library_that_is_missing_is_one_sentence(monkeypatch):
    def missing(url, **how):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(
        UserError,
        match=r"s3:// needs s3fs, which is not installed: pip install 'megascratch\[s3\]'",
    ):
        checkpoint.list_steps("s3://bucket/run")


@S3_TOO
def test_no_address_becomes_a_folder_of_this_machine(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(folder)
    load(folder)
    checkpoint.acquire(folder).release()
    assert os.listdir(tmp_path) == [] and isinstance(folder, StoragePath)
