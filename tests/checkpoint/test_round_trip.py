"""Law 8: a checkpoint has no layout. Any cut over any number of ranks loads any other, bit for bit."""

import random

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from megascratch import checkpoint
from megascratch.checkpoint.format import file_format
from megascratch.checkpoint.format.file_format import FileExtent
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box, CopyAxis
from megascratch.parallel.sharded_tensor import ShardedTensor
from tests.support.random_shards import (
    SHAPES,
    names_that_differ,
    random_boxes,
    shards_of_rank,
    whole,
    world,
)
from tests.support.rank_pool import RankFailed, on_ranks

STATE = {
    "step": 7,
    "loss_scale": {"scale": 65536.0, "tiny": 5e-324},
    "names": ["ä", None, True],
    "big": 2**63,
}


def here(size):
    return world(size, dist.get_rank() if size > 1 else 0, dist.group.WORLD if size > 1 else None)


def save_cut(folder, size, seed):
    axis = here(size)
    return checkpoint.save(
        folder, 7, shards_of_rank(axis.rank, size, seed, filled=True), STATE, axis
    )


def load_cut(path, size, seed):
    axis = here(size)
    held = shards_of_rank(axis.rank, size, seed, filled=False)
    return checkpoint.load(path, held, axis), names_that_differ(held)


def on(size, function, *args):
    return [function(*args)] if size == 1 else on_ranks(size, function, *args)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"), [(1, 1), (1, 3), (2, 4), (3, 2), (4, 1), (4, 4)]
)
def test_any_cut_loads_any_other_bit_for_bit(tmp_path, saved_by, loaded_by):
    for seed in range(3):
        folder = tmp_path / str(seed)
        paths = on(saved_by, save_cut, folder, saved_by, seed)
        assert paths == [folder / "step_00000007"] * saved_by
        for answer in on(loaded_by, load_cut, folder, loaded_by, 100 + seed):
            assert answer == (STATE, [])


def test_a_tensor_larger_than_a_chunk_is_cut_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(file_format, "CHUNK_BYTES", 20)
    save_cut(tmp_path, 1, 0)
    assert load_cut(tmp_path, 1, 5) == (STATE, [])
    with OpenCheckpoint(tmp_path / "step_00000007") as contents:
        sizes = [
            tensor.chunk_bytes(chunk)
            for name, tensor in contents.manifest.tensors.items()
            for chunk in contents.chunks(name)
        ]
    assert max(sizes) <= 20


def test_the_files_are_plain_safetensors(tmp_path):
    """Another program can read them: the library, which checks the format, agrees on every chunk."""
    path = save_cut(tmp_path, 1, 1)
    with OpenCheckpoint(path) as contents:
        tensors = contents.manifest.tensors
        chunks = {name: list(contents.chunks(name)) for name in tensors}
    for name, tensor in tensors.items():
        for chunk in chunks[name]:
            with safe_open(path / chunk.file, framework="pt") as file:
                got = file.get_tensor(FileExtent(name, tensor.shape, chunk.box, torch.empty(0)).key)
            assert torch.equal(got.nan_to_num(7), whole(name)[chunk.box.slices].nan_to_num(7))
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        name: spec for name, spec in SHAPES.items() if name != "optim.nothing"
    }


def test_a_chunk_that_nobody_wants_is_not_read(tmp_path):
    """The rank reads its rows although the other rows are damaged."""
    on_ranks(2, save_rows, tmp_path)
    other = tmp_path / "step_00000001" / "00001.safetensors"
    other.write_bytes(other.read_bytes()[:-1] + b"?")
    lower = ShardedTensor("w", (4, 2), Box((0, 0), (2, 2)), torch.zeros(2, 2), 0)
    checkpoint.load(tmp_path, [lower], world())
    assert lower.tensor.tolist() == [[0, 1], [2, 3]]


def save_rows(folder):
    rank = dist.get_rank()
    rows = torch.arange(8.0).view(4, 2)[2 * rank : 2 * rank + 2]
    held = [ShardedTensor("w", (4, 2), Box((2 * rank, 0), (2 * rank + 2, 2)), rows, 0)]
    return checkpoint.save(folder, 1, held, {}, here(2))


@pytest.mark.parametrize("copies, files", [(1, ["00000"]), (2, ["00000", "00001"])])
def test_copies_share_the_writing_and_a_rank_without_anything_writes_no_file(
    tmp_path, copies, files
):
    on_ranks(2, save_replicas, tmp_path, copies)
    assert sorted(p.stem for p in (tmp_path / "step_00000001").iterdir()) == [
        *files,
        "chunks",
        "manifest",
    ]


def save_replicas(folder, tensors):
    axis = here(2)
    held = [
        ShardedTensor(
            f"w{i}", (2,), Box((0,), (2,)), torch.ones(2), axis.rank, (CopyAxis("data", 2),)
        )
        for i in range(tensors)
    ]
    checkpoint.save(folder, 1, held, {}, axis)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_is_converted_only_when_told(tmp_path, dtype):
    value = torch.tensor([1.0, 2.5, -3.0])
    checkpoint.save(tmp_path, 1, [ShardedTensor("w", (3,), Box((0,), (3,)), value, 0)], {}, world())
    target = ShardedTensor("w", (3,), Box((0,), (3,)), torch.zeros(3, dtype=dtype), 0)
    with pytest.raises(UserError, match=r"w has torch.float32, this run needs"):
        checkpoint.load(tmp_path, [target], world())
    checkpoint.load(tmp_path, [target], world(), cast=True)
    assert torch.equal(target.tensor, value.to(dtype))


def test_a_prefix_asks_for_a_part_of_the_names(tmp_path):
    save_cut(tmp_path, 1, 0)
    held = [h for h in shards_of_rank(0, 1, 3, filled=False) if h.name.startswith("param.")]
    with pytest.raises(UserError, match=r"this model does not have: optim\.counts, optim\.scalar"):
        checkpoint.load(tmp_path, held, world())
    checkpoint.load(tmp_path, held, world(), prefix="param.")
    assert names_that_differ(held) == []


def test_random_boxes_are_a_cut():
    """The tests' own cutter: disjoint boxes that fill the tensor."""
    draw = random.Random(0)
    for shape in [(5, 4), (3, 2, 4), (), (9,)]:
        count = torch.zeros(shape)
        for box in random_boxes(shape, 6, draw):
            count[box.slices] += 1
        assert count.eq(1).all()


def save_badly(folder, how):
    """Rank 1 breaks the save in one of several ways; what is on disk afterwards."""
    axis = here(2)
    held = shards_of_rank(axis.rank, 2, 0, filled=True)
    state = {}
    if axis.rank == 1:
        parts = [h for h in held if not h.copied_over and h.tensor.numel()]
        mine = next(h for h in parts if h.box.shape != h.whole_shape)
        if how == "gap":
            held.remove(mine)
        elif how == "twice":
            held.append(mine)
        elif how == "shape":
            held.append(ShardedTensor(mine.name, (*mine.whole_shape, 1), mine.box, mine.tensor, 0))
        elif how == "tensor":
            held.append(ShardedTensor("x", (4,), Box((0,), (4,)), torch.zeros(3), 0))
        elif how == "dtype":
            held.append(
                ShardedTensor("x", (1,), Box((0,), (1,)), torch.zeros(1, dtype=torch.complex64), 0)
            )
    elif how == "state":
        state = {"x": object()}
    try:
        checkpoint.save(folder, 1, held, state, axis)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("gap", "elements"),
        ("twice", "overlap"),
        ("shape", "ranks disagree on"),
        ("tensor", "x: the tensor has shape [3], its box has [4]"),
        ("dtype", "complex64 cannot be saved"),
        ("state", "JSON"),
    ],
)
def test_a_failure_on_one_rank_is_raised_on_all_and_leaves_nothing(tmp_path, how, complaint):
    answers = on_ranks(2, save_badly, tmp_path / "run", how)
    assert answers[0] == answers[1] and answers[0][0] == "CheckpointError"
    assert complaint in answers[0][1]
    assert list(tmp_path.glob("run/*")) == []


def test_a_step_is_never_overwritten(tmp_path):
    save_cut(tmp_path, 1, 0)
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "step_00000007").iterdir())
    with pytest.raises(UserError, match="already exists, and checkpoints are never overwritten"):
        save_cut(tmp_path, 1, 1)
    with pytest.raises(RankFailed, match=r"UserError: rank 0: .*already exists"):
        on_ranks(2, save_cut, tmp_path, 2, 0)
    assert (
        sorted((p.name, p.read_bytes()) for p in (tmp_path / "step_00000007").iterdir()) == before
    )
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000007"]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        save_cut(tmp_path / "file" / "run", 1, 0)
