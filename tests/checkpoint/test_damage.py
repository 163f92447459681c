"""Whatever is wrong with a checkpoint on disk is refused, on all ranks, naming the file."""

import json
import random

import pytest
import torch
import torch.distributed as dist

from megascratch import checkpoint
from megascratch.checkpoint import DamagedError, load_newest
from megascratch.checkpoint.format.manifest import signed
from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from tests.support.random_shards import shards_of_rank, world
from tests.support.rank_pool import on_ranks

DATA = "00000.safetensors"


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


@pytest.mark.parametrize("name", [DATA, "manifest.json"])
def test_a_flipped_bit_anywhere_is_found(step, name):
    size = (step / name).stat().st_size
    for at in [*range(90), size - 1, *random.Random(name).sample(range(size), 200)]:
        flip(step / name, at)
        with pytest.raises(UserError, match=name):
            load(step)
        flip(step / name, at)
    assert load(step) == {"lr": 0.5}


@pytest.mark.parametrize("name", [DATA, "manifest.json"])
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
            "has a chunk outside of it: [0:7, 0:1]",
        ),
        (
            lambda body: set_item(chunks(body)[0], "file", "../x"),
            "is not a valid name of a data file",
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
        (lambda body: set_item(body, "format", 1), "format 1, this version reads only format 2"),
        (lambda body: set_item(body["tensors"]["param.norm"], "dtype", "float8"), "float8"),
        (lambda body: body.pop("state"), "no 'state'"),
        (lambda body: set_item(body, "tensors", 3), "damaged"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_refused(step, change, complaint):
    one = ShardedTensor("param.norm", (7,), Box((0,), (7,)), torch.zeros(7, dtype=torch.float64), 0)
    checkpoint.save(step.parent, 8, [one], {}, world())
    newer = step.parent / "step_00000008"
    rewrite(newer, change)
    with pytest.raises(UserError) as raised:
        checkpoint.load(newer, [one], world())
    assert complaint in str(raised.value) and "manifest.json is damaged" in str(raised.value)


def test_a_chunk_whose_checksum_is_another_is_refused_with_its_tensor(step):
    rewrite(
        step,
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
