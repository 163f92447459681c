"""torch.distributed.checkpoint writes and reads our folders, checksums and all, and both sides read each other's."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from megascratch import checkpoint
from megascratch.checkpoint.tools.dcp import DcpReader, DcpWriter
from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from tests.support.random_shards import names_that_differ, shards_of_rank, whole, world
from tests.support.rank_pool import on_ranks

WHOLE = {
    "a": torch.arange(35.0).view(7, 5),
    "nested.b": torch.tensor(3.5),
    "c": torch.arange(6, dtype=torch.int64),
}


def whole_of(name, tensor):
    return ShardedTensor(
        name, tuple(tensor.shape), Box((0,) * tensor.dim(), tuple(tensor.shape)), tensor, 0
    )


def test_a_plain_state_dict_comes_back_and_is_an_ordinary_checkpoint(tmp_path):
    dcp.save(dict(WHOLE), storage_writer=DcpWriter(tmp_path, 5, {"lr": 1}), no_dist=True)
    state = {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()}
    dcp.load(state, storage_reader=DcpReader(tmp_path / "step_00000005"), no_dist=True)
    assert all(torch.equal(state[name], WHOLE[name]) for name in WHOLE)
    held = [whole_of(name, torch.zeros_like(tensor)) for name, tensor in WHOLE.items()]
    assert checkpoint.load(tmp_path, held, world()) == {"lr": 1}
    assert all(torch.equal(item.tensor, WHOLE[item.name]) for item in held)
    files = sorted(path.name for path in (tmp_path / "step_00000005").iterdir())
    assert files == ["00000.safetensors", "chunks.bin", "manifest.json"]


def test_it_reads_what_training_wrote(tmp_path):
    checkpoint.save(tmp_path, 1, shards_of_rank(0, 1, 3, filled=True), {}, world())
    manifest = checkpoint.read_manifest(tmp_path / "step_00000001")
    state = {name: torch.zeros(w.shape, dtype=w.dtype) for name, w in manifest.tensors.items()}
    dcp.load(state, storage_reader=DcpReader(tmp_path), no_dist=True)
    held = [whole_of(name, tensor) for name, tensor in state.items()]
    assert names_that_differ(held) == [] and whole("param.norm").shape == (7,)


def save_sharded(folder):
    mesh = init_device_mesh("cpu", (2,))
    places = {"a": Shard(0), "c": Replicate()}
    state = {name: distribute_tensor(WHOLE[name], mesh, [place]) for name, place in places.items()}
    dcp.save(state, storage_writer=DcpWriter(folder, 2))
    again = {"a": distribute_tensor(torch.zeros(7, 5), mesh, [Shard(1)])}
    dcp.load(again, storage_reader=DcpReader(folder))
    return again["a"].full_tensor()


def test_shards_of_two_ranks_load_in_another_cut(tmp_path):
    for found in on_ranks(2, save_sharded, tmp_path):
        assert torch.equal(found, WHOLE["a"])
    held = whole_of("a", torch.zeros(7, 5))
    found = checkpoint.load(tmp_path, [held], world(), prefix="a")
    assert found == {} and torch.equal(held.tensor, WHOLE["a"])


def test_damage_and_what_is_no_tensor_are_refused(tmp_path):
    dcp.save(dict(WHOLE), storage_writer=DcpWriter(tmp_path, 5), no_dist=True)
    file = tmp_path / "step_00000005" / "00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointException, match=r"00000.safetensors is damaged: the bytes of"):
        dcp.load(
            {
                "a": torch.zeros(7, 5),
                "c": torch.zeros(6, dtype=torch.int64),
                "nested.b": torch.zeros(()),
            },
            storage_reader=DcpReader(file.parent),
            no_dist=True,
        )
    with pytest.raises((CheckpointException, UserError), match="step is not a tensor"):
        dcp.save({"step": 7}, storage_writer=DcpWriter(tmp_path, 6), no_dist=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
