"""A checkpoint written on any layout in, the whole model on one device out, with its settings and its tokenizer."""

import os
import sys

import torch

from megascratch.checkpoint import latest_valid, load, read_manifest
from megascratch.checkpoint.steps import candidates
from megascratch.config.errors import UserError
from megascratch.config.printable import printable
from megascratch.config.saved import config_from_dict
from megascratch.config.settings import Config
from megascratch.model.build import shard_table
from megascratch.model.chunk import ModelChunk
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.storage.path import Place
from megascratch.tokenizer import Tokenizer
from megascratch.tokenizer import load as load_tokenizer
from megascratch.training.hardware import parameter_dtype


def load_for_inference(
    path: str | Place,
    device: torch.device,
    tokenizer_model: str | None = None,
    tokenizer_type: str | None = None,
) -> tuple[Config, ModelChunk, Tokenizer]:
    """The model in evaluation mode; on a CPU half precision becomes fp32, which is faster there and loses nothing.

    Args:
        path: a step folder, or a folder of them (its newest sound one).
        tokenizer_model, tokenizer_type: instead of the checkpoint's own, e.g. where the file has moved.

    Raises: UserError where there is no sound checkpoint, or the tokenizer is not the one that the model learned.
    """

    def read(step: Place) -> tuple[Config, ModelChunk, Tokenizer]:
        state = read_manifest(step).state
        if "config" not in state:
            raise UserError(f"{step} has no settings in it: megascratch pretrain did not write it")
        config = config_from_dict(state["config"])
        tokenizer = _tokenizer(config, state.get("tokenizer_fingerprint"), tokenizer_model, tokenizer_type)
        return config, load_model(step, config, device), tokenizer

    found = latest_valid(path, candidates(path), read)
    for problem in found.passed_over.values():
        print(f"megascratch: warning: passed over: {printable(problem)}", file=sys.stderr)
    return found.result


def load_model(step: Place, config: Config, device: torch.device) -> ModelChunk:
    """All layers as one chunk on `device`, filled from the ``param.*`` of a checkpoint."""
    dtype = parameter_dtype(config.optim)
    if device.type == "cpu" and dtype.itemsize == 2:
        dtype = torch.float32
    with torch.device(device):
        chunk = ModelChunk(config.model, range(config.model.num_layers), True, True, Axis.alone("tp")).to(dtype)
    chunk.requires_grad_(False).eval()
    load(step, _held(chunk), Axis.alone("world"), prefix="param.", cast=True)
    return chunk


def _held(chunk: ModelChunk) -> list[ShardedTensor]:
    """``param.*`` of a model that one process holds: each tensor is its whole, but for padding, which becomes zero."""
    shards, held = shard_table(chunk), []
    for name, parameter in chunk.named_parameters():
        shape = shards[name].shape
        whole = Box((0,) * len(shape), shape)
        held.append(ShardedTensor(f"param.{name}", shape, whole, parameter.detach().zero_()[whole.slices], 0))
    return held


def _tokenizer(config: Config, learned: str | None, model: str | None, kind: str | None) -> Tokenizer:
    tokenizer = load_tokenizer(
        kind or (None if model else config.data.tokenizer_type),
        model or config.data.tokenizer_model,
        config.model.vocab_size,
    )
    if learned is not None and tokenizer.fingerprint != learned:
        given = model or config.data.tokenizer_model or tokenizer.kind
        raise UserError(
            f"the model learned with tokenizer {learned[:16]}, {given} is {tokenizer.fingerprint[:16]}: "
            "give the file of that time as --tokenizer-model"
        )
    assert config.model.vocab_size is not None
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model knows {config.model.vocab_size}: "
            "give the tokenizer that it learned with as --tokenizer-model"
        )
    return tokenizer


def use_all_threads() -> None:
    """One process has the machine to itself, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
