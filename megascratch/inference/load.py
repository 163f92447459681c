"""Loads the model of a checkpoint onto one device for inference, with its settings and tokenizer. The checkpoint may
have been written on any layout.
"""

import os
import sys

import torch
from torch import Tensor

from megascratch.checkpoint import latest_valid, load, read_manifest
from megascratch.checkpoint.steps import candidates
from megascratch.config.errors import UserError
from megascratch.config.layout import Layout
from megascratch.config.printable import printable
from megascratch.config.resolve import ResolvedConfig, ResolvedModel, resolve
from megascratch.config.saved import config_from_dict, require_parts
from megascratch.config.settings import DataConfig, OptimConfig
from megascratch.model.chunk import ModelChunk
from megascratch.model.table import shard_table
from megascratch.parallel.axis import Axis
from megascratch.parallel.control import Control
from megascratch.parallel.grid import Position
from megascratch.parallel.kept_state import kept_state, widen_buffers
from megascratch.parallel.sharded_tensor import MODEL, ShardedTensor, held_piece
from megascratch.storage.path import Place
from megascratch.tokenizer import Tokenizer, TokenizerSource
from megascratch.training.hardware import parameter_dtype

CHECKPOINTS_OWN = TokenizerSource()


def load_for_inference(
    path: str | Place,
    device: torch.device,
    source: TokenizerSource = CHECKPOINTS_OWN,
) -> tuple[ResolvedConfig, ModelChunk, Tokenizer]:
    """The settings, the model in evaluation mode, and the tokenizer. On a CPU half precision becomes fp32, which is
    faster there and loses nothing.

    Args:
        path: a step folder, or a folder of steps, of which the newest valid one is loaded.
        source: what names the tokenizer instead of the checkpoint's own, for example if its file has moved.

    Raises: UserError if there is no valid checkpoint, or the tokenizer is not the one that the model was trained with.
    """

    def read(step: Place) -> tuple[ResolvedConfig, ModelChunk, Tokenizer]:
        state = read_manifest(step).state
        if "config" not in state:
            raise UserError(
                f"{step} contains no settings: it was not written by megascratch pretrain"
            )
        saved_config = config_from_dict(state["config"])
        require_parts(saved_config.model, state.get("imports", {}))
        config = resolve(saved_config, Layout.of(saved_config.parallel).world)
        vocab_size = config.model.vocab_size
        fingerprint = state.get("tokenizer_fingerprint")
        tokenizer = _tokenizer(config.data, vocab_size, fingerprint, source)
        return config, load_model(step, config.model, config.optim, device), tokenizer

    found = latest_valid(path, candidates(path), read)
    for problem in found.passed_over.values():
        print(f"megascratch: warning: skipped: {printable(problem)}", file=sys.stderr)
    return found.result


def load_model(
    step: Place, model: ResolvedModel, optim: OptimConfig, device: torch.device
) -> ModelChunk:
    """All layers as one chunk on `device`, filled from the weights and kept state of a checkpoint."""
    dtype = parameter_dtype(optim)
    if device.type == "cpu" and dtype.itemsize == 2:
        dtype = torch.float32
    if device.type == "mps" and dtype == torch.float64:
        dtype = torch.float32  # it has no fp64
    layers = range(model.num_layers)
    with torch.device(device):
        chunk = ModelChunk(model, layers, True, True, Axis.alone("tp")).to(dtype)
    widen_buffers(chunk)
    chunk.requires_grad_(False).eval()
    load(step, _held(chunk), Control.alone(), prefix=MODEL, cast=True)
    return chunk


def _held(chunk: ModelChunk) -> list[ShardedTensor]:
    """The tensors of a model that one process holds. Each is complete; its padding is zeroed."""
    shards = shard_table(chunk)
    tensors: dict[str, Tensor] = {}
    for name, parameter in chunk.named_parameters():
        tensors[f"param.{name}"] = parameter
    for name, buffer in kept_state(chunk, shards):
        tensors[f"buffer.{name}"] = buffer
    held = []
    for name, tensor in tensors.items():
        shard = shards[name.split(".", 1)[1]]
        tensor = tensor.detach().zero_()
        for piece in shard.pieces(Position(Layout())):
            part = tensor[piece.local.slices]
            held.append(held_piece(name, shard, piece, part))
    return held


def _tokenizer(
    data: DataConfig, vocab_size: int, learned: str | None, given: TokenizerSource
) -> Tokenizer:
    """The tokenizer that is given, else the checkpoint's; what is given may be only its kind."""
    saved = TokenizerSource.of(data, vocab_size)
    source = given._replace(vocab_size=vocab_size) if given.main_file else saved
    if given.tokenizer_type is not None:
        source = source._replace(tokenizer_type=given.tokenizer_type)
    tokenizer = source.load()
    if learned is not None and tokenizer.fingerprint != learned:
        name = source.main_file or tokenizer.kind
        raise UserError(
            f"the model was trained with tokenizer {learned[:16]}, but {name} is {tokenizer.fingerprint[:16]}: "
            "give the original tokenizer file as --tokenizer-model"
        )
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model has {vocab_size}: "
            "give the tokenizer that it was trained with as --tokenizer-model"
        )
    return tokenizer


def use_all_threads() -> None:
    """Lets torch use all CPU cores, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
