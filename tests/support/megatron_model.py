"""The same model here and in Megatron-LM: weights from a formula that both sides can evaluate, and their names there.

`MODELS` are command lines of Megatron-LM with what megatron-core gives for them, loss and gradient norm, as measured by
`tests/model/test_megatron_model.py` with megatron-core 0.16.1 and torch 2.13.0 on a CPU, in fp32.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from megascratch.config.fields import with_fields
from megascratch.config.load import read_config
from megascratch.config.resolve import ResolvedConfig, ResolvedModel, resolve
from megascratch.data.samples.batch import Batch, collate
from megascratch.model.build import build_chunks
from megascratch.model.chunk import ModelChunk
from megascratch.parallel.mesh import Mesh

BATCH = 3
VOCABULARY = 61
COMMON = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--make-vocab-size-divisible-by 1 --hidden-dropout 0 --attention-dropout 0 --mock-data --train-iters 1 "
    "--micro-batch-size 3 --global-batch-size 3"
)


class SameModel(NamedTuple):
    """A command line, and what megatron-core gives for it."""

    flags: str
    core: Mapping[str, Any]
    """What Megatron-LM makes of the flags: arguments of GPTModel that differ from `core_arguments`."""
    loss: float
    norm: float
    """Of the gradient of the mean loss, the embedding counted once."""


ROPE = {"position_embedding_type": "rope"}
TANH = {"bias_activation_fusion": True}
NO_BIAS = {"add_bias_linear": False}
LLAMA = (
    "--normalization RMSNorm --disable-bias-linear --position-embedding-type rope "
    "--untie-embeddings-and-output-weights"
)
MODELS = {
    "GELU in its tanh form": SameModel("", TANH, 4.4834666, 2.0501385),
    "GELU in its erf form": SameModel("--no-bias-gelu-fusion", {}, 4.4834328, 2.0500914),
    "norm biases without linear biases": SameModel(
        "--disable-bias-linear", NO_BIAS, 4.3848500, 2.6462102
    ),
    "biases of queries, keys and values alone": SameModel(
        "--disable-bias-linear --add-qkv-bias --squared-relu",
        {**NO_BIAS, "add_qkv_bias": True, "activation": "squared_relu"},
        4.4786963,
        2.2171655,
    ),
    "a SwiGLU whose width is rounded down": SameModel(
        f"{LLAMA} --swiglu",
        {
            **NO_BIAS,
            **ROPE,
            "activation": "swiglu",
            "ffn_hidden_size": 64,
            "normalization": "RMSNorm",
            "share_embeddings_and_output_weights": False,
        },
        4.2788501,
        2.8925849,
    ),
    "weights of norms stored minus one": SameModel(
        "--apply-layernorm-1p", TANH, 4.4834666, 2.0501385
    ),
    "interleaved rotary positions of half a head": SameModel(
        "--position-embedding-type rope --rotary-interleaved --rotary-percent 0.5",
        {**TANH, **ROPE, "rotary_interleaved": True, "rotary_percent": 0.5},
        4.4866495,
        1.9556226,
    ),
    "interpolated rotary positions of another base": SameModel(
        "--use-rotary-position-embeddings --rotary-seq-len-interpolation-factor 4 --rotary-base 500",
        {**TANH, **ROPE, "seq_len_interpolation_factor": 4, "rotary_base": 500},
        4.4869838,
        1.9491158,
    ),
    "two key/value heads": SameModel(
        "--group-query-attention --num-query-groups 2",
        {**TANH, "num_query_groups": 2},
        4.3184433,
        1.6329972,
    ),
    "a number of query groups that is ignored": SameModel(
        "--num-query-groups 2", TANH, 4.4834666, 2.0501385
    ),
    "padding rows of the vocabulary in the softmax": SameModel(
        "--padded-vocab-in-softmax --make-vocab-size-divisible-by 8",
        {**TANH, "vocab_size": 64},
        4.5532975,
        2.1465186,
    ),
    "norms of queries and keys": SameModel(
        f"{LLAMA} --qk-layernorm --swiglu --ffn-hidden-size 64 --group-query-attention --num-query-groups 2",
        {
            **NO_BIAS,
            **ROPE,
            "activation": "swiglu",
            "ffn_hidden_size": 64,
            "normalization": "RMSNorm",
            "num_query_groups": 2,
            "qk_layernorm": True,
            "share_embeddings_and_output_weights": False,
        },
        4.2137909,
        2.8328689,
    ),
    "norms of queries and keys with biases": SameModel(
        "--qk-layernorm --position-embedding-type rope",
        {**TANH, **ROPE, "qk_layernorm": True},
        4.4978261,
        2.0170939,
    ),
    "a window in the first of two layers": SameModel(
        "--window-size 3,0 --window-attn-skip-freq [1]+[0]",
        {**TANH, "window_size": (3, 0), "window_attn_skip_freq": [1, 0]},
        4.4480801,
        1.9331768,
    ),
    "a window in all layers but every second": SameModel(
        "--window-size (5,0) --window-attn-skip-freq 2 --position-embedding-type rope",
        {**TANH, **ROPE, "window_size": (5, 0), "window_attn_skip_freq": 2},
        4.4725161,
        1.9307772,
    ),
    "learnable sinks": SameModel(
        "--softmax-type learnable", {**TANH, "softmax_type": "learnable"}, 4.4313226, 1.8740658
    ),
    "sinks of one": SameModel(
        "--softmax-type off-by-one", {**TANH, "softmax_type": "off-by-one"}, 4.4315286, 1.8669285
    ),
    "one of two layers does not rotate": SameModel(
        "--position-embedding-type rope --no-rope-freq ([1]+[0])*1",
        {**TANH, **ROPE, "no_rope_freq": [1, 0]},
        4.4917483,
        1.9504677,
    ),
    "every second layer does not rotate": SameModel(
        "--position-embedding-type rope --no-rope-freq 2",
        {**TANH, **ROPE, "no_rope_freq": 2},
        4.4821353,
        1.9373126,
    ),
    "a quick GeGLU that is clamped": SameModel(
        "--quick-geglu --glu-linear-offset 1.0 --activation-func-clamp-value 0.5",
        {"activation": "quick_geglu", "glu_linear_offset": 1.0, "activation_func_clamp_value": 0.5},
        4.5304952,
        2.2150440,
    ),
    "rotary positions stretched as in Llama 3.1": SameModel(
        "--position-embedding-type rope --use-rope-scaling --seq-length 512 --max-position-embeddings 512",
        {**TANH, **ROPE, "rope_scaling": True},
        4.2935557,
        0.90597006,
    ),
    "rotary positions far out, whose angles are fp32 there": SameModel(
        "--position-embedding-type rope --seq-length 512 --max-position-embeddings 512",
        {**TANH, **ROPE},
        4.2935643,
        0.90556222,
    ),
}


def config_of_flags(flags: str) -> ResolvedConfig:
    """The settings of a command line of Megatron-LM after `COMMON`."""
    words = [*COMMON.split(), *flags.split(), "--flags-of", "megatron"]
    config, _, problems, _ = read_config(words)
    assert problems == []
    return resolve(with_fields(config, {"vocab_size": VOCABULARY}), 1)


def formula(name: str, shape: tuple[int, ...], mean: float) -> Tensor:
    """The weight of that name: waves whose frequency rises along the weight, so no two rows are alike."""
    index = np.arange(int(np.prod(shape)), dtype=np.float64)
    phase = float(sum(name.encode()) % 997)
    size = 0.3 if len(shape) == 1 else 0.15
    values = mean + size * np.sin(phase + 0.37 * index + 0.0131 * index * index)
    return torch.from_numpy(values.astype(np.float32)).view(shape)


@torch.no_grad()
def model_of_formulas(config: ResolvedConfig) -> ModelChunk:
    """The model in fp32 in one process, with the weights of the formulas."""
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float32, 1)
    for name, weight in chunk.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        values = formula(name, tuple(weight.shape), 1.0 if is_norm else 0.0)
        if is_norm and config.model.apply_layernorm_1p:
            values -= 1
        weight.copy_(values)
    return chunk


def batch_of_formulas(config: ResolvedConfig) -> Batch:
    """Samples of ids that a formula gives."""
    length = config.data.seq_length
    samples = []
    for number in range(BATCH):
        index = np.arange(length + 1) + 17 * number
        samples.append((7 * index * index + 3 * index + number) % VOCABULARY)
    return collate(samples, range(BATCH), length, None)


def loss_and_gradients(config: ResolvedConfig) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of the model of the formulas, and the gradient of each weight."""
    chunk = model_of_formulas(config)
    loss = chunk(None, batch_of_formulas(config)) / (BATCH * config.data.seq_length)
    loss.backward()
    grads = {}
    for name, weight in chunk.named_parameters():
        assert weight.grad is not None
        grads[name] = weight.grad
    return loss.item(), grads


def norm_of_gradients(grads: Mapping[str, Tensor]) -> float:
    return torch.stack([grad.double().norm() for grad in grads.values()]).norm().item()


def the_model_is_that_of_megatron_core(name: str) -> None:
    """The loss and the norm of the gradient are the values of the table."""
    same = MODELS[name]
    loss, grads = loss_and_gradients(config_of_flags(same.flags))
    assert loss == pytest.approx(same.loss, rel=1e-6)
    assert norm_of_gradients(grads) == pytest.approx(same.norm, rel=1e-5)


# ---- Megatron-LM's side -------------------------------------------------------------------------------------------

_NAMES = {
    "embedding.word.weight": "embedding.word_embeddings.weight",
    "embedding.position.weight": "embedding.position_embeddings.weight",
    "head.weight": "output_layer.weight",
    "norm1": "input_layernorm",
    "norm2": "pre_mlp_layernorm",
    "attention.qkv": "self_attention.linear_qkv",
    "attention.q_norm": "self_attention.q_layernorm",
    "attention.k_norm": "self_attention.k_layernorm",
    "attention.sinks": "self_attention.core_attention.softmax_offset",
    "attention.proj": "self_attention.linear_proj",
    "mlp.fc1": "mlp.linear_fc1",
    "mlp.fc2": "mlp.linear_fc2",
    "final_norm": "decoder.final_layernorm",
}


def name_there(name: str) -> str:
    """`layers.3.norm1.weight` -> `decoder.layers.3.input_layernorm.weight`."""
    if name in _NAMES:
        return _NAMES[name]
    layer, part, kind = re.fullmatch(r"(layers\.\d+\.)?(.+?)(\.weight|\.bias)?", name).groups()
    where = f"decoder.{layer}" if layer else ""
    return f"{where}{_NAMES[part]}{kind or ''}"


def tensors_there(tensors: Mapping[str, Tensor], model: ResolvedModel) -> dict[str, Tensor]:
    """Weights or gradients by their names there. Rows of queries, keys and values are sorted by group there: the
    queries of a group, its key, its value."""
    found = {}
    for name, tensor in tensors.items():
        if ".attention.qkv." in name:
            tensor = _by_group(tensor, model)
        found[name_there(name)] = tensor
    return found


def _by_group(fused: Tensor, model: ResolvedModel) -> Tensor:
    groups = model.num_query_groups
    width = model.kv_channels
    sizes = [model.num_attention_heads * width, groups * width, groups * width]
    parts = []
    for part in fused.split(sizes):
        parts.append(part.unflatten(0, (groups, -1)))  # [groups, rows of a group, ...]
    return torch.cat(parts, 1).flatten(0, 1)
