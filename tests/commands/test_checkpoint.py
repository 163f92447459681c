"""`megascratch checkpoint`: what it says of checkpoints is true, and what it writes is what was asked for."""

import json

import pytest
import torch

from megascratch import checkpoint
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
from megascratch.commands import main
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from tests.support.random_shards import shards_of_rank, world

SHAPE = (6, 4)


def model(value, optimizer=True, dtype=torch.float32):
    """Two weights in uneven boxes, with moments, and masters where the type needs them."""
    kinds = {"param": dtype} | ({"optim.exp_avg": torch.float32} if optimizer else {})
    kinds |= {"optim.master": torch.float32} if optimizer and dtype.itemsize == 2 else {}
    held = []
    for kind, type_ in kinds.items():
        whole = (torch.arange(24.0).view(SHAPE) / 4 + value).to(type_)
        for rows in ((0, 1), (1, 6)):
            box = Box((rows[0], 0), (rows[1], 4))
            held.append(ShardedTensor(f"{kind}.w", SHAPE, box, whole[box.slices], 0))
        held.append(
            ShardedTensor(
                f"{kind}.b", (3,), Box((0,), (3,)), torch.full((3,), value, dtype=type_), 0
            )
        )
    return held


def save(folder, step, value, loss=None, **kind):
    state = {
        "train_state": {"step": step, "consumed_samples": 8 * step},
        "config": {"optim": {"bf16": False, "lr": 1}},
    }
    return checkpoint.save(
        folder, step, model(value, **kind), state | ({"valid_loss": loss} if loss else {}), world()
    )


def run(capsys, *words, code=0):
    assert main(["checkpoint", *map(str, words)]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return json.loads(said.out) if "--json" in words else said.out + said.err


@pytest.fixture
def steps(tmp_path):
    """Five steps; the third is the best, the newest is cut short."""
    losses = {10: 5.0, 20: 4.0, 30: 1.0, 40: 3.0, 50: 2.0}
    paths = [save(tmp_path / "run", step, float(step), loss) for step, loss in losses.items()]
    file = paths[-1] / "00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return paths


def test_inspect_lists_steps_and_the_tensors_of_one(steps, capsys):
    said = run(capsys, "inspect", steps[0].parent)
    assert (
        "1.0000" in said
        and "it has" in said
        and "bytes, the manifest says" in " ".join(said.split())
    )
    found = run(capsys, "inspect", steps[1], "--json")
    assert (found["step"], found["problem"], found["state"]["train_state"]["consumed_samples"]) == (
        20,
        "",
        160,
    )
    assert {
        "name": "param.w",
        "shape": [6, 4],
        "dtype": "float32",
        "bytes": 96,
        "chunks": 2,
    } in found["tensors"]
    said = run(capsys, "inspect", steps[1], "--most", 1)
    assert (
        "step 20, 160 samples, 4 tensors" in said
        and "optim.exp_avg" in said
        and "and 3 more" in said
    )


def test_verify_reads_every_byte(steps, capsys):
    assert "valid" in run(capsys, "verify", steps[0])
    content = bytearray((steps[0] / "00000.safetensors").read_bytes())
    content[-1] ^= 1
    (steps[0] / "00000.safetensors").write_bytes(content)
    (steps[0] / "extra").write_text("")
    said = run(capsys, "verify", steps[0], code=1)
    assert (
        "00000.safetensors is damaged: the bytes of" in said
        and "extra does not belong to the checkpoint" in said
    )
    found = run(capsys, "verify", steps[0].parent, "--json", code=1)
    assert [row["sound"] for row in found.values()] == [False, True, True, True, False]


def test_diff_tells_tensors_and_settings_apart(tmp_path, steps, capsys):
    assert "4 of 4 tensors are bitwise equal" in run(capsys, "diff", steps[0], steps[0])
    found = run(capsys, "diff", steps[0], steps[1], "--json", code=1)
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["param.b"] | {"relative": 1.0} == rows["param.b"]
    assert (rows["param.w"]["different"], rows["param.w"]["largest"]) == (24, 10.0)
    assert {"place": "train_state.step", "first": 10, "second": 20} in found["state"]
    other = save(tmp_path / "other", 10, 10.0, optimizer=False, dtype=torch.bfloat16)
    said = run(capsys, "diff", steps[0], other, code=1)
    assert (
        "type float32 and bfloat16" in said
        and "only in the first" in said
        and "0 of 4 tensors are bitwise equal" in said
    )


def values(path):
    with OpenCheckpoint(path) as contents:
        tensors = contents.manifest.tensors
        return {
            name: contents.box(name, Box((0,) * len(w.shape), w.shape))
            for name, w in tensors.items()
        }


def test_reshard_changes_files_not_tensors(tmp_path, steps, capsys):
    found = run(capsys, "reshard", steps[0], "--output", tmp_path / "new", "--files", 3, "--json")
    assert found["files"] == 3 and found["path"] == str(tmp_path / "new" / "step_00000010")
    assert "4 of 4 tensors are bitwise equal" in run(capsys, "diff", steps[0], tmp_path / "new")
    assert "valid" in run(capsys, "verify", tmp_path / "new")
    assert "already exists" in run(
        capsys, "reshard", steps[0], "--output", tmp_path / "new", code=2
    )
    slim = run(
        capsys, "reshard", steps[0], "--output", tmp_path / "slim", "--weights-only", "--json"
    )
    assert set(values(slim["path"])) == {"param.w", "param.b"}


def test_another_precision_keeps_what_is_known(tmp_path, steps, capsys):
    """fp32 -> bf16 makes the old weights the masters; back, the masters are the weights again."""
    low = run(
        capsys, "reshard", steps[0], "--output", tmp_path / "low", "--dtype", "bf16", "--json"
    )["path"]
    fine, coarse = values(steps[0]), values(low)
    assert torch.equal(coarse["param.w"], fine["param.w"].bfloat16())
    assert torch.equal(coarse["optim.master.w"], fine["param.w"])
    assert checkpoint.read_manifest(low).state["config"]["optim"]["bf16"] is True
    run(capsys, "reshard", low, "--output", tmp_path / "back", "--dtype", "fp32")
    said = run(capsys, "diff", steps[0], tmp_path / "back")
    assert "4 of 4 tensors are bitwise equal" in said
    assert "must be one of fp64, fp32" in run(
        capsys, "reshard", low, "--output", "x", "--dtype", "int8", code=2
    )


def save_with_state(folder, step):
    """A step whose model also has a frozen weight and state without a gradient, all of the value of the step."""
    kinds = {
        "param.frozen": torch.full((2,), float(step)),
        "buffer.mean": torch.full((2,), float(step)),
        "buffer.count": torch.tensor(step),
    }
    held = model(float(step))
    for name, tensor in kinds.items():
        shape = tuple(tensor.shape)
        held.append(ShardedTensor(name, shape, Box((0,) * len(shape), shape), tensor, 0))
    return checkpoint.save(folder, step, held, {"config": {"optim": {"bf16": False}}}, world())


def test_frozen_weights_and_state_without_a_gradient_belong_to_the_model(tmp_path, capsys):
    first, second = (save_with_state(tmp_path / "run", step) for step in (10, 20))
    names = {"param.w", "param.b", "param.frozen", "buffer.mean", "buffer.count"}
    slim = run(capsys, "reshard", first, "--output", tmp_path / "slim", "--weights-only", "--json")
    assert set(values(slim["path"])) == names
    low = run(capsys, "reshard", first, "--output", tmp_path / "low", "--dtype", "bf16", "--json")
    found = values(low["path"])
    assert set(found) - names == {
        *("optim.exp_avg.w", "optim.exp_avg.b"),
        *("optim.master.w", "optim.master.b"),
    }, "what is frozen gets no masters"
    types = {name: found[name].dtype for name in sorted(names)}
    assert types == {
        "buffer.count": torch.int64,
        "buffer.mean": torch.float32,
        "param.b": torch.bfloat16,
        "param.frozen": torch.bfloat16,
        "param.w": torch.bfloat16,
    }
    again = run(
        capsys, "reshard", slim["path"], "--output", tmp_path / "a", "--dtype", "bf16", "--json"
    )
    assert set(values(again["path"])) == names, "without an optimizer nothing gets masters"
    mean = run(capsys, "average", first, second, "--output", tmp_path / "mean", "--json")
    found = values(mean["path"])
    assert set(found) == names
    assert found["param.frozen"].tolist() == found["buffer.mean"].tolist() == [15.0, 15.0]
    assert found["buffer.count"].item() == 20


def test_average_is_the_mean_of_the_weights(tmp_path, steps, capsys):
    done = run(capsys, "average", *steps[:3], "--output", tmp_path / "mean", "--json")
    found = values(done["path"])
    assert set(found) == {"param.w", "param.b"} and torch.equal(
        found["param.w"], values(steps[1])["param.w"]
    )
    assert checkpoint.read_manifest(done["path"]).state["averaged_steps"] == [10, 20, 30]
    other = checkpoint.save(
        tmp_path / "other", 1, shards_of_rank(0, 1, 0, filled=True), {}, world()
    )
    assert "belongs to another model" in run(
        capsys, "average", other, steps[0], "--output", tmp_path / "x", code=2
    )
    assert "needs two or more checkpoints" in run(
        capsys, "average", steps[0], "--output", tmp_path / "x", code=2
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ([], [40]),  # the newest sound one
        (["--keep-last-n-checkpoints", 2], [30, 40]),
        (["--keep-best-n-checkpoints", 1], [30, 40]),
        (["--save-retain-interval", 20], [20, 40]),
    ],
)
def test_prune_keeps_what_is_asked_for_and_the_newest_sound_step(steps, capsys, flags, left):
    folder = steps[0].parent
    before = sorted(path.name for path in folder.iterdir())
    dry = run(capsys, "prune", folder, *flags, "--dry-run", "--json")
    assert sorted(path.name for path in folder.iterdir()) == before
    done = run(capsys, "prune", folder, *flags, "--json")
    assert done["deleted"] == dry["deleted"] and done["kept"] == dry["kept"]
    numbers = [
        path for path in sorted(checkpoint.list_steps(folder)) if path.name != "step_00000050"
    ]
    assert numbers == [folder / f"step_{number:08d}" for number in left]
    assert (
        folder / "step_00000050"
    ).exists()  # damaged, and newer than what is kept: for people to look at


def test_prune_reads_what_it_keeps(steps, capsys):
    """A flipped bit in the tensors of the newest one that looks sound: its elder stays."""
    content = bytearray((steps[3] / "00000.safetensors").read_bytes())
    content[-2] ^= 16
    (steps[3] / "00000.safetensors").write_bytes(content)
    run(capsys, "prune", steps[0].parent)
    assert sorted(path.name[-2:] for path in checkpoint.list_steps(steps[0].parent)) == [
        "30",
        "40",
        "50",
    ]


def test_nothing_is_pruned_where_nothing_is_sound_or_somebody_writes(steps, capsys):
    for step in steps:
        (step / "manifest.json").write_text("{}")
    assert "no checkpoint" in run(capsys, "prune", steps[0].parent, code=2)
    assert len(checkpoint.list_steps(steps[0].parent)) == 5
    folder = steps[0].parent.parent / "other"
    save(folder, 1, 1.0)
    lease = checkpoint.Lease.acquire(folder)
    assert "is being written by process" in run(capsys, "prune", folder, code=2)
    lease.release()


@pytest.mark.parametrize(
    "words", [["inspect", "nowhere"], ["verify", "nowhere"], ["diff", "nowhere", "x"]]
)
def test_a_place_without_a_checkpoint_is_told(tmp_path, capsys, words):
    assert "no checkpoint" in run(
        capsys, words[0], *(tmp_path / word for word in words[1:]), code=2
    )
