"""Kernels read memory by address: no tensor gets there whose address is not its value."""

import ast
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megascratch.config.settings import Config
from megascratch.dry_run.memory import MemoryTracker
from megascratch.layers.kernels import choice, cpu
from megascratch.model.chunk import ModelChunk
from megascratch.parallel.axis import Axis
from megascratch.parallel.device_kind import device_kind
from megascratch.training.hardware import parameter_dtype
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.pairwise_cover import DOCUMENTS, GPT, LLAMA, MEGATRON, PARTLY_ROTARY
from tests.support.special_tensors import KINDS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ended():
    """The exit code of each kind of special tensor, and what all of them said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.special_tensors"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split() for line in done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_special_tensors_are_computed_without_kernels(kind, ended):
    codes, said = ended
    assert codes[kind] == "0", said[-4000:]


class Tagged(torch.Tensor):
    """A subclass with memory of its own."""


def test_a_kernel_reads_dense_cpu_tensors_and_no_others():
    x = torch.ones(2, 3)
    with torch.inference_mode():
        made_in_inference_mode = torch.ones(2)
    readable = [x, x.t(), x[:, 1:], torch.nn.Parameter(x), made_in_inference_mode, x.double()]
    unreadable = [
        torch.ones(2, device="meta"),
        x.to_sparse(),
        x.to_mkldnn(),
        torch._efficientzerotensor(2),
        torch._neg_view(x),
        torch.complex(x, x).conj().imag,
        x.as_subclass(Tagged),
    ]
    assert [cpu.can_read(tensor) for tensor in readable] == [True] * len(readable)
    assert [cpu.can_read(tensor) for tensor in unreadable] == [False] * len(unreadable)
    assert cpu.can_read(x, x) and not cpu.can_read(x, unreadable[0])


def test_in_a_dry_run_a_tensor_is_of_the_kind_of_the_target():
    """The innermost mode counts; a tensor with memory stays what it is, and a kernel that reads it is not used."""
    meta = torch.ones(2, device="meta")
    real = torch.ones(2)
    assert (device_kind(meta), device_kind(real), cpu.can_read(meta)) == ("meta", "cpu", False)
    with MemoryTracker("cuda"):
        assert (device_kind(meta), device_kind(real), cpu.can_read(meta)) == ("cuda", "cpu", False)
        with MemoryTracker("cpu"):
            assert (device_kind(meta), cpu.can_read(meta), cpu.can_read(real)) == (
                "cpu",
                True,
                False,
            )
            assert not cpu.can_read(meta, real) and not cpu.can_read(torch._neg_view(meta))
        assert device_kind(meta) == "cuda"


SETTINGS = {
    "gpt": {**GPT, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "llama": {**LLAMA, **DOCUMENTS},
    "llama, selective recomputation": {**LLAMA, "recompute_granularity": "selective"},
    "partly rotary, fp32": {**PARTLY_ROTARY, "fp64": False},
    "interleaved rotary": MEGATRON,
    "bf16": {**GPT, "fp64": False, "bf16": True},
}


def built(config: Config, dtype: torch.dtype) -> ModelChunk:
    """The whole model in the current mode and on the current default device."""
    model = config.model
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        chunk = ModelChunk(model, range(model.num_layers), True, True, Axis.alone("tp"))
    finally:
        torch.set_default_dtype(before)
    chunk.set_recompute(config.parallel)
    return chunk


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("where", ["fake", "meta", "dry run of a cpu", "dry run of a gpu"])
def test_a_whole_model_runs_without_content(kind, where, monkeypatch):
    """Forward and backward, with the shapes and types of the weights: as a tool asks that counts memory or FLOPs."""
    # a kernel that is asked is an error
    monkeypatch.setattr(cpu, "_KERNELS", dict.fromkeys(cpu._KERNELS))
    config = config_of(**SETTINGS[kind], num_layers=2)
    batch = synthetic_batch(config, [0])
    modes = ExitStack()
    if where == "fake":
        modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
    else:
        modes.enter_context(torch.device("meta"))
    if where.startswith("dry run"):
        modes.enter_context(MemoryTracker("cpu" if where.endswith("cpu") else "cuda"))
    with modes:
        chunk = built(config, parameter_dtype(config.optim))
        loss = chunk(None, batch.to("cpu" if where == "fake" else "meta"))
        loss.backward()
    assert loss.shape == ()
    for name, weight in chunk.named_parameters():
        assert weight.grad.shape == weight.shape and weight.grad.dtype == weight.dtype, name


MAY_ASK_THE_COMPILER = {
    "linear.py",  # keeps its sinks and collectives out of compiled graphs
    "visible.py",  # compiled code cannot keep a mask for the next layer
}


def test_layers_choose_no_kernel_themselves():
    layers = Path(choice.__file__).parents[1]
    found = []
    for path in sorted(layers.rglob("*.py")):
        place = path.relative_to(layers).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            imported = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            asks = name in ("is_compiling", "is_cuda", "data_ptr", "is_cpu")
            if imported.endswith(("kernels.cpu", "kernels.gpu")) or asks:
                found.append((place, name or imported))
    assert [
        (place, name)
        for place, name in found
        if not place.startswith("kernels/") and place not in MAY_ASK_THE_COMPILER
    ] == []
