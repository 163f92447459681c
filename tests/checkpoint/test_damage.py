"""Whatever is wrong with a checkpoint on disk is refused, on all ranks, naming the file."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megascratch import checkpoint
from megascratch.checkpoint import DamagedError, latest, load_newest
from megascratch.checkpoint.chunk_reader import ChunkReader
from megascratch.checkpoint.format.manifest import signed
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint, problems
from megascratch.checkpoint.tools.diff import differences
from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from tests.support.checkpoint_laws import rows_that_changed_places_are_refused
from tests.support.format_2 import to_format_2
from tests.support.random_shards import names_that_differ, shards_of_rank, world
from tests.support.rank_pool import on_ranks
from tests.support.signed_tables import changed_table

DATA = "00000.safetensors"
TABLE = "chunks.bin"
ALL = [DATA, TABLE, "manifest.json"]


@pytest.fixture
def step(tmp_path):
    return checkpoint.save(tmp_path, 7, shards_of_rank(0, 1, 0, filled=True), {"lr": 0.5}, world())


def load(path):
    held = shards_of_rank(0, 1, 9, filled=False)
    return checkpoint.load(path, held, world())


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def rewrite(step, change):
    """Changes the manifest's body and signs it anew: what a hostile or careless program would write."""
    path = step / "manifest.json"
    body = json.loads(path.read_text())["body"]
    change(body)
    path.write_bytes(signed(json.dumps(body).encode()))


@pytest.mark.parametrize("name", ALL)
def test_a_flipped_bit_anywhere_is_found(step, name):
    size = (step / name).stat().st_size
    for at in [*range(90), size - 1, *random.Random(name).sample(range(size), 200)]:
        flip(step / name, at)
        with pytest.raises(UserError, match=name):
            load(step)
        flip(step / name, at)
    assert load(step) == {"lr": 0.5}


@pytest.mark.parametrize("name", ALL)
def test_a_file_cut_anywhere_is_refused_with_its_name(step, name):
    good = (step / name).read_bytes()
    for left in [0, 5, 100, len(good) - 1, *random.Random(name).sample(range(len(good)), 100)]:
        (step / name).write_bytes(good[:left])
        with pytest.raises(UserError, match=name):
            load(step)
    (step / name).write_bytes(good)
    load(step)


def test_a_missing_file_is_refused_with_its_name(step):
    (step / DATA).unlink()
    with pytest.raises(UserError, match=f"{DATA} is damaged or missing"):
        load(step)
    (step / TABLE).unlink()
    with pytest.raises(UserError, match=f"{TABLE} is damaged or missing"):
        load(step)
    (step / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"step_00000007 is not a checkpoint: manifest\.json cannot be read"
    ):
        load(step)


def chunks(body):
    return body["tensors"]["param.norm"]["chunks"]


def files(body):
    return body["files"]


def set_item(record, key, value):
    record[key] = value


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda body: chunks(body).pop(), "param.norm hold 0 of its 7 elements"),
        (
            lambda body: chunks(body).append(chunks(body)[0]),
            "param.norm has chunks that overlap: [0:7] and [0:7]",
        ),
        (lambda body: set_item(chunks(body)[0], "stop", [6]), "param.norm hold 6 of its 7"),
        (lambda body: set_item(chunks(body)[0], "stop", [8]), "has a chunk outside of it: [0:8]"),
        (
            lambda body: set_item(chunks(body)[0], "start", [-1]),
            "-1 is not a whole number, 0 or more",
        ),
        (
            lambda body: set_item(chunks(body)[0], "start", ["0"]),
            "'0' is not a whole number, 0 or more",
        ),
        (
            lambda body: set_item(chunks(body)[0], "start", [True]),
            "True is not a whole number, 0 or more",
        ),
        (lambda body: set_item(chunks(body)[0], "stop", [7, 1]), "from [0] to [7, 1] is not a box"),
        (
            lambda body: chunks(body)[0].update(start=[0, 0], stop=[7, 1]),
            "from [0, 0] to [7, 1] is not a box of a tensor with 1 dims",
        ),
        (lambda body: set_item(chunks(body)[0], "stop", [1 << 70]), "is larger than any file"),
        (lambda body: set_item(chunks(body)[0], "file", "../x"), "is not among the files"),
        (
            lambda body: set_item(body["tensors"]["param.norm"], "shape", [1 << 70]),
            "param.norm has an impossible shape",
        ),
        (
            lambda body: set_item(chunks(body)[0], "file", "other.safetensors"),
            "is not among the files",
        ),
        (
            lambda body: set_item(chunks(body)[0], "offset", 8),
            "has a chunk at byte 8, but the previous one ends at byte",
        ),
        (lambda body: set_item(chunks(body)[0], "xxh3_64", "x"), "'x' is not a checksum"),
        (
            lambda body: set_item(files(body)[DATA], "bytes", 9),
            "has 9 bytes, its chunks end at byte",
        ),
        (lambda body: files(body).update(more=files(body)[DATA]), "more has"),
        (
            lambda body: files(body).update({"..": files(body)[DATA]}),
            "'..' is not a valid name of a data file",
        ),
        (lambda body: set_item(body, "format", 1), "format 1, this version reads only formats 2"),
        (lambda body: set_item(body["tensors"]["param.norm"], "dtype", "float8"), "float8"),
        (lambda body: body.pop("state"), "no 'state'"),
        (lambda body: set_item(body, "tensors", 3), "damaged"),
    ],
)
def test_a_manifest_of_format_2_that_does_not_add_up_is_refused(step, change, complaint):
    one = ShardedTensor("param.norm", (7,), Box((0,), (7,)), torch.zeros(7, dtype=torch.float64), 0)
    checkpoint.save(step.parent, 8, [one], {}, world())
    newer = to_format_2(step.parent / "step_00000008")
    rewrite(newer, change)
    with pytest.raises(UserError) as raised:
        checkpoint.load(newer, [one], world())
    assert complaint in str(raised.value) and "manifest.json is damaged" in str(raised.value)


def test_a_step_of_format_2_is_loaded_bit_for_bit_by_any_cut_and_by_the_tools(step):
    to_format_2(step)
    for seed in range(3):
        held = shards_of_rank(0, 1, seed, filled=False)
        assert checkpoint.load(step.parent, held, world()) == {"lr": 0.5}
        assert names_that_differ(held) == []
    assert list(problems(step)) == [] and latest(step.parent) == step
    again = checkpoint.save(
        step.parent, 8, shards_of_rank(0, 1, 4, filled=True), {"lr": 0.5}, world()
    )
    with OpenCheckpoint(step) as old, OpenCheckpoint(again) as new:
        assert {difference.reason for difference in differences(old, new)} == {""}


# ---- the manifest and the table of chunks ----------------------------------------------------------------------


def entry(body):
    return body["tensors"]["param.norm"]


@pytest.mark.parametrize(
    ("change", "file", "complaint"),
    [
        (lambda body: set_item(body, "format", 4), "manifest.json", "format 4, this version"),
        (lambda body: body.pop("state"), "manifest.json", "no 'state'"),
        (lambda body: body.pop("files"), "manifest.json", "no 'files'"),
        (lambda body: set_item(body, "tensors", 3), "manifest.json", "damaged"),
        (lambda body: set_item(body, "table", "../x.bin"), "manifest.json", "not a valid name"),
        (lambda body: set_item(body, "table", "chunks.json"), "manifest.json", "not a valid name"),
        (lambda body: set_item(body, "table", "other.bin"), "other.bin", "damaged or missing"),
        (lambda body: set_item(files(body), "number", 2), TABLE, "it has 128 bytes, manifest"),
        (lambda body: set_item(files(body), "number", 1 << 70), "manifest.json", "table of chunks"),
        (lambda body: set_item(files(body), "bytes", 9), TABLE, "bytes, manifest.json says 9"),
        (lambda body: set_item(files(body), "xxh3_64", "0" * 16), TABLE, "match their checksum"),
        (lambda body: set_item(entry(body), "chunks", 2), TABLE, "manifest.json says 168"),
        (lambda body: set_item(entry(body), "chunks", 0), TABLE, "manifest.json says 88"),
        (lambda body: set_item(entry(body), "chunks", -1), "manifest.json", "not a whole number"),
        (lambda body: set_item(entry(body), "chunks", 1 << 62), "manifest.json", "more than 1,073"),
        (lambda body: set_item(entry(body), "shape", [6]), TABLE, "a chunk outside of it: [0:7]"),
        (lambda body: set_item(entry(body), "shape", [8]), TABLE, "hold 7 of its 8 elements"),
        (lambda body: set_item(entry(body), "shape", [7, 1]), TABLE, "manifest.json says 144"),
        (lambda body: set_item(entry(body), "shape", [1 << 62]), "manifest.json", "impossible"),
        (lambda body: set_item(entry(body), "shape", [0] * 70), "manifest.json", "impossible"),
        (lambda body: set_item(entry(body), "dtype", "float8"), "manifest.json", "float8"),
        (lambda body: set_item(entry(body), "dtype", "float32"), TABLE, "its chunks end at byte"),
        (lambda body: set_item(entry(body), "xxh3_64", "x"), "manifest.json", "not a checksum"),
        (lambda body: set_item(entry(body), "xxh3_64", "0" * 16), TABLE, "match their checksum"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_refused(tmp_path, change, file, complaint):
    one = norm()
    step = checkpoint.save(tmp_path, 8, [one], {}, world())
    rewrite(step, change)
    with pytest.raises(UserError) as raised:
        checkpoint.load(step, [one], world())
    assert complaint in str(raised.value) and f"{file} is damaged" in str(raised.value)
    assert any(str(raised.value) == problem for problem in problems(step))


def norm() -> ShardedTensor:
    return ShardedTensor(
        "param.norm", (7,), Box((0,), (7,)), torch.zeros(7, dtype=torch.float64), 0
    )


def rewrite_table(step: Path, change: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Changes the row of the only file and the numbers of the only chunk."""
    manifest, table = changed_table(
        (step / "manifest.json").read_bytes(),
        (step / TABLE).read_bytes(),
        lambda files, rows: change(files[0], rows["param.norm"][0]),
    )
    (step / "manifest.json").write_bytes(manifest)
    (step / TABLE).write_bytes(table)


FILE_NUMBER, OFFSET, CHECKSUM, START, STOP = range(5)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda file, chunk: chunk.put(FILE_NUMBER, 1), "chunk in file number 1, which is not"),
        (lambda file, chunk: chunk.put(FILE_NUMBER, 1 << 63), "which is not among the 1 files"),
        (lambda file, chunk: chunk.put(OFFSET, 8), "has a chunk at byte 8, but the previous one"),
        (lambda file, chunk: chunk.put(OFFSET, (1 << 64) - 8), "has a chunk at byte 18,446,744"),
        (lambda file, chunk: chunk.put(START, 1), "bytes, its chunks end at byte"),
        (lambda file, chunk: chunk.put(STOP, 6), "bytes, its chunks end at byte"),
        (lambda file, chunk: chunk.put(STOP, 8), "has a chunk outside of it: [0:8]"),
        (lambda file, chunk: chunk.put(START, 7), "has a chunk outside of it: [7:7]"),
        (lambda file, chunk: chunk.put(START, (1 << 64) - 1), "has a chunk outside of it"),
        (lambda file, chunk: set_item(file, "bytes", 999), "has 999 bytes, its chunks end at byte"),
        (
            lambda file, chunk: set_item(file, "bytes", 1 << 63),
            "cannot have 9,223,372,036,854,775,8",
        ),
        (lambda file, chunk: set_item(file, "header_bytes", 9999), "9,999 of them in the header"),
        (lambda file, chunk: set_item(file, "name", b"../x"), "'../x' is not a valid name"),
        (lambda file, chunk: set_item(file, "name", b"chunks.bin"), "is not a valid name"),
        (lambda file, chunk: set_item(file, "name", b"manifest.json"), "is not a valid name"),
        (lambda file, chunk: set_item(file, "name", b""), "'' is not a valid name"),
        (lambda file, chunk: set_item(file, "name", b"\xff\x1b[2J"), "is not a valid name"),
    ],
)
def test_a_table_that_does_not_add_up_is_refused(tmp_path, change, complaint):
    step = checkpoint.save(tmp_path, 8, [norm()], {}, world())
    rewrite_table(step, change)
    with pytest.raises(UserError) as raised:
        checkpoint.load(step, [norm()], world())
    assert complaint in str(raised.value) and f"{TABLE} is damaged" in str(raised.value)
    assert any(str(raised.value) == problem for problem in problems(step))


def test_the_table_of_another_step_is_refused(step):
    """Also one of the same size, with the same checksums of the same shapes."""
    other = checkpoint.save(
        step.parent,
        8,
        [item_filled_with(held, 1) for held in shards_of_rank(0, 1, 0, True)],
        {},
        world(),
    )
    assert (other / TABLE).stat().st_size == (step / TABLE).stat().st_size
    (step / TABLE).write_bytes((other / TABLE).read_bytes())
    with pytest.raises(UserError, match=f"{TABLE} is damaged: the bytes from .* their checksum"):
        load(step)


def item_filled_with(held: ShardedTensor, value: float) -> ShardedTensor:
    held.tensor.fill_(value)
    return held


def test_rows_of_two_tensors_that_changed_places_are_refused(tmp_path):
    rows_that_changed_places_are_refused(tmp_path)


def rank_reads_the_rows_of_its_tensors(folder):
    """Rank 1's rows are damaged: rank 0 alone does not notice, apart from its look at the files."""
    rank = dist.get_rank()
    axis = world(2, rank, dist.group.WORLD)
    held = [ShardedTensor(f"w{rank}", (4,), Box((0,), (4,)), torch.ones(4), 0)]
    step = checkpoint.save(folder, 1, held, {}, axis)
    reader = ChunkReader(step, checkpoint.read_manifest(step))
    dist.barrier()
    if rank == 0:
        flip(step / TABLE, -1)
    dist.barrier()
    try:
        reader.chunks([f"w{rank}"])
    except UserError as error:
        return str(error)
    return "read"


def test_a_rank_reads_the_rows_of_its_own_tensors_only(tmp_path):
    first, second = on_ranks(2, rank_reads_the_rows_of_its_tensors, tmp_path)
    assert first == "read" and "chunks.bin is damaged" in second


def test_a_chunk_whose_checksum_is_another_is_refused_with_its_tensor(step):
    rewrite(
        to_format_2(step),
        lambda body: set_item(body["tensors"]["optim.scalar"]["chunks"][0], "xxh3_64", "0" * 16),
    )
    with pytest.raises(
        UserError,
        match=r"00000.* damaged: the bytes of optim\.scalar\[\] do not match their checksum",
    ):
        load(step)


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("w2", (4,), "has no tensor w2"),
        ("w", (5,), "w has shape [4], this model needs [5]"),
        ("w", (4, 1), "w has shape [4], this model needs [4, 1]"),
    ],
)
def test_another_model_is_refused_with_the_tensor(tmp_path, name, shape, complaint):
    def box(of):
        return Box((0,) * len(of), of)

    checkpoint.save(
        tmp_path, 1, [ShardedTensor("w", (4,), box((4,)), torch.ones(4), 0)], {}, world()
    )
    with pytest.raises(UserError) as raised:
        checkpoint.load(
            tmp_path, [ShardedTensor(name, shape, box(shape), torch.ones(shape), 0)], world()
        )
    assert complaint in str(raised.value)


def load_where_one_rank_fails(folder):
    rank = dist.get_rank()
    rows = ShardedTensor("w", (4,), Box((2 * rank,), (2 * rank + 2,)), torch.zeros(2), 0)
    axis = world(2, rank, dist.group.WORLD)
    checkpoint.save(folder, 1, [rows], {}, axis)
    if rank == 0:
        flip(folder / "step_00000001" / "00001.safetensors", -1)
    dist.barrier()
    try:
        checkpoint.load(folder / "step_00000001", [rows], axis)
    except UserError as error:
        return str(error)
    return "loaded"


def test_a_damage_that_one_rank_meets_stops_all(tmp_path):
    first, second = on_ranks(2, load_where_one_rank_fails, tmp_path)
    assert (
        first == second and first.startswith("rank 1:") and "00001.safetensors is damaged" in first
    )


def test_the_newest_sound_step_is_found(step):
    run = step.parent
    for number in (9, 10, 100_000_000):
        checkpoint.save(
            run, number, shards_of_rank(0, 1, 0, filled=True), {"step": number}, world()
        )
    (run / "step_00000011").mkdir()
    (run / "step_00000012.partial").mkdir()
    (run / "notes.txt").write_text("")
    assert checkpoint.latest(run) == run / "step_100000000"
    (run / "step_100000000" / "manifest.json").write_text("{")
    assert checkpoint.latest(run) == run / "step_00000010"
    with pytest.warns(
        UserWarning, match=r"skipped: .*(step_100000000.*damaged|step_00000011 is not)"
    ) as told:
        assert load(run) == {"step": 10}
    assert len(told) == 2
    assert load(run / "step_00000009") == {"step": 9}


def test_a_damaged_tensor_sends_the_load_to_the_step_before_and_only_a_named_step_is_refused(step):
    newer = checkpoint.save(
        step.parent, 8, shards_of_rank(0, 1, 0, filled=True), {"newer": True}, world()
    )
    flip(newer / DATA, -3)
    with pytest.warns(
        UserWarning, match=r"skipped: .*step_00000008.00000.*the bytes of .* do not match"
    ):
        assert load(step.parent) == {"lr": 0.5}
    with pytest.raises(DamagedError, match="step_00000008"):
        load(newer)
    flip(step / DATA, -3)
    with pytest.raises(UserError, match=r"has no valid step\n.*step_00000008.*\n.*step_00000007"):
        load(step.parent)


def fall_back_together(folder):
    """Only the second rank meets the damage; both go back."""
    rank = dist.get_rank()
    rows = ShardedTensor("w", (4,), Box((2 * rank,), (2 * rank + 2,)), torch.zeros(2), 0)
    axis = world(2, rank, dist.group.WORLD)
    for number in (1, 2):
        rows.tensor.fill_(number)
        checkpoint.save(folder, number, [rows], {"step": number}, axis)
    if rank == 0:
        flip(folder / "step_00000002" / "00001.safetensors", -1)
    dist.barrier()
    found = load_newest(folder, [rows], axis)
    return found.step.name, found.result, rows.tensor.tolist(), list(found.passed_over.values())


def test_all_ranks_go_back_to_the_same_step(tmp_path):
    answers = on_ranks(2, fall_back_together, tmp_path)
    for name, state, values, (told,) in answers:
        assert (name, state, values) == ("step_00000001", {"step": 1}, [1, 1])
        assert (
            told.startswith("rank 1:")
            and "00001.safetensors is damaged: the bytes of w[2:4] do not match" in told
        )


@pytest.mark.parametrize("make", [None, "empty", "file"])
def test_a_place_without_a_checkpoint_is_told(tmp_path, make):
    place = tmp_path / "run"
    if make == "empty":
        place.mkdir()
    elif make == "file":
        place.write_text("")
    assert checkpoint.latest(place) is None
    with pytest.raises(UserError, match=r"no checkpoint: .*run"):
        load(place)
