"""The same small model here and in transformers: settings of both, and weights from here under the names there.

`FAMILIES` are models of published families with every size small. To add one: its class, its config, the settings that
say the same here, and where the norms of a block are called otherwise than in Llama.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import validate
from megascratch.config.resolve import ResolvedConfig, resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import collate
from megascratch.model.build import build_chunks
from megascratch.model.chunk import ModelChunk, context_of
from megascratch.parallel.mesh import Mesh

SEQUENCE = 24
BATCH = 2
EPSILON = 1e-6


class Family(NamedTuple):
    """A model of transformers, and the settings that say the same here."""

    model: str
    """Its class there, without ForCausalLM."""
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    norms: Mapping[str, str] = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    """Norm of a block here -> its name there."""
    fused: bool = False
    """Whether q, k and v are one matrix there, and gate and up, too."""


COMMON = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 96,
    "vocab_size": 61,
    "make_vocab_size_divisible_by": 1,
    "seq_length": SEQUENCE,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "norm_epsilon": EPSILON,
    "swiglu": True,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "init_method_std": 0.2,
    "mock_data": True,
    "train_iters": 1,
}
COMMON_THERE = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 61,
    "rms_norm_eps": EPSILON,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_cache": True,
}
SANDWICH = {
    "norm1": "input_layernorm",
    "post_norm1": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "post_norm2": "post_feedforward_layernorm",
}
AFTER = {"post_norm1": "post_attention_layernorm", "post_norm2": "post_feedforward_layernorm"}
SHORT = [1.0, 1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0]
LONG = [1.0, 1.5, 2.0, 3.0, 5.0, 9.0, 20.0, 40.0]


def llama(rope: Mapping[str, Any], **settings: Any) -> Family:
    """A Llama whose rope is `rope` there and `settings` here."""
    return Family("Llama", {"rope_parameters": {"rope_theta": 1e4, **rope}}, settings)


def stretched(kind: str, factor: float, original: int | None = 12, **more: Any) -> dict[str, Any]:
    """The settings of a rope of that kind here."""
    return {
        "rope_scaling_type": kind,
        "rope_scaling_factor": factor,
        "rope_original_max_position_embeddings": original,
        **more,
    }


def phi3(original: int) -> Family:
    rope = {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "factor": 4.0,
        "original_max_position_embeddings": original,
    }
    factors = {"rope_short_factors": SHORT, "rope_long_factors": LONG}
    return Family(
        "Phi3",
        {
            "rope_parameters": {"rope_theta": 1e4, **rope},
            "original_max_position_embeddings": original,
            "sliding_window": 7,
        },
        {**stretched("longrope", 4.0, original), **factors, "sliding_window": 7},
        fused=True,
    )


GEMMA_SETTINGS = {
    "untie_embeddings_and_output_weights": False,
    "apply_layernorm_1p": True,
    "norm_placement": "both",
    "embedding_scale": 8.0,
    "swiglu": False,
    "activation_function": "geglu",
    "softmax_scale": 24**-0.5,
    "sliding_window": 5,
}
GEMMA = {"query_pre_attn_scalar": 24, "sliding_window": 5, "tie_word_embeddings": True}

FAMILIES: dict[str, Family] = {
    "Llama": llama({"rope_type": "default"}),
    "Llama, linear": llama(
        {"rope_type": "linear", "factor": 4.0}, **stretched("linear", 4.0, None)
    ),
    "Llama, dynamic": Family(
        "Llama",
        {
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0},
            "max_position_embeddings": 12,
        },
        stretched("dynamic", 4.0),
    ),
    "Llama 3.1": llama(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 12,
        },
        **stretched("llama3", 8.0),
    ),
    "Llama, YaRN": llama(
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
        **stretched("yarn", 4.0),
    ),
    "Llama, YaRN of DeepSeek": llama(
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 12,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "truncate": False,
        },
        **stretched("yarn", 40.0),
        rope_mscale=1.0,
        rope_mscale_all_dim=0.5,
        rope_truncate=False,
    ),
    "Phi-3, short samples": phi3(24),
    "Phi-3, long samples": phi3(12),
    "SmolLM3": Family(
        "SmolLM3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
        {"rotary_base": 5e6, "no_rope_freq": [4]},
    ),
    "Qwen3": Family(
        "Qwen3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rotary_base": 1e6, "qk_layernorm": True},
    ),
    "Gemma 2": Family(
        "Gemma2",
        {
            **GEMMA,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": None,
        },
        {**GEMMA_SETTINGS, "window_attn_skip_freq": [2], "attn_logit_softcapping": 3.0},
        SANDWICH,
    ),
    "Gemma 3": Family(
        "Gemma3",
        {
            **GEMMA,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
        {
            **GEMMA_SETTINGS,
            **stretched("linear", 8.0, None),
            "num_layers": 6,
            "window_attn_skip_freq": [6],
            "qk_layernorm": True,
            "rotary_base": 1e6,
            "rotary_base_windowed": 1e4,
        },
        SANDWICH,
    ),
    "OLMo 2": Family(
        "Olmo2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {
            "rotary_base": 5e5,
            "norm_placement": "post",
            "qk_layernorm": True,
            "qk_layernorm_over": "all_heads",
        },
        AFTER,
    ),
    "OLMo 3": Family(
        "Olmo3",
        {
            "sliding_window": 5,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "original_max_position_embeddings": 12,
                    "attention_factor": 1.2,
                },
            },
        },
        {
            **stretched("yarn", 8.0),
            "rope_attention_factor": 1.2,
            "rotary_base": 5e5,
            "rotary_base_windowed": 5e5,
            "sliding_window": 5,
            "window_attn_skip_freq": [4],
            "norm_placement": "post",
            "qk_layernorm": True,
            "qk_layernorm_over": "all_heads",
        },
        AFTER,
    ),
}


def config_of(name: str) -> ResolvedConfig:
    config = with_fields(Config(), {**COMMON, **FAMILIES[name].settings})
    validate(flat(config), 1)
    return resolve(config, 1)


def model_here(name: str, dtype: torch.dtype) -> ModelChunk:
    """With random weights in all parts, norms included."""
    config = config_of(name)
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in chunk.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(0.1 * noise)
    return chunk.to(dtype).eval()


def model_there(name: str, here: ModelChunk) -> torch.nn.Module:
    """The model of transformers with the weights of `here`."""
    transformers = pytest.importorskip("transformers")
    family = FAMILIES[name]
    make_config = _class_of(transformers, family.model, "TextConfig", "Config")
    settings = {"num_hidden_layers": 4, **COMMON_THERE, **family.config}
    config = make_config(**settings, attn_implementation="eager")
    model = _class_of(transformers, family.model, "ForCausalLM")(config)
    dtype = next(here.parameters()).dtype
    weights = under_their_names(name, here, dict(here.named_parameters()))
    model = model.to(dtype).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == [] and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def _class_of(transformers: Any, family: str, *endings: str) -> Any:
    for ending in endings:
        if hasattr(transformers, family + ending):
            return getattr(transformers, family + ending)
    raise LookupError(f"transformers has no {family} with {endings}")


def under_their_names(
    name: str, here: ModelChunk, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights, or their gradients, by the names of transformers."""
    family = FAMILIES[name]
    model = here.model
    q = model.num_attention_heads * model.kv_channels
    kv = model.num_query_groups * model.kv_channels
    ends = {
        "embedding.word.weight": "model.embed_tokens.weight",
        "final_norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }
    found: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        if full_name in ends:
            found[ends[full_name]] = tensor
            continue
        _, layer, part, *rest = full_name.split(".")
        block = f"model.layers.{layer}"
        end = ".".join(rest)
        if part in family.norms:
            found[f"{block}.{family.norms[part]}.{end}"] = tensor
        elif end.startswith("qkv."):
            kind = end.removeprefix("qkv.")
            if family.fused:
                found[f"{block}.self_attn.qkv_proj.{kind}"] = tensor
            else:
                for each, rows in zip("qkv", tensor.split((q, kv, kv)), strict=True):
                    found[f"{block}.self_attn.{each}_proj.{kind}"] = rows
        elif part == "attention":
            found[f"{block}.self_attn.{end.replace('proj.', 'o_proj.')}"] = tensor
        elif end.startswith("fc1."):
            kind = end.removeprefix("fc1.")
            if family.fused:
                found[f"{block}.mlp.gate_up_proj.{kind}"] = tensor
            else:
                for each, rows in zip(("gate", "up"), tensor.chunk(2), strict=True):
                    found[f"{block}.mlp.{each}_proj.{kind}"] = rows
        else:
            found[f"{block}.mlp.{end.replace('fc2.', 'down_proj.')}"] = tensor
    return found


def logits_here(name: str, model: ModelChunk, ids: Tensor) -> Tensor:
    """[b, s, v] of ids [b, s]."""
    rows = [torch.tensor([*row, 0]).numpy() for row in ids.tolist()]
    batch = collate(rows, range(len(rows)), ids.shape[1], None)
    hidden = model.hidden(None, batch.ids, context_of(batch))  # [s, b, h]
    return model.head.logits(hidden).view(ids.shape[1], len(rows), -1).transpose(0, 1)


class _Fp64:
    """torch for modules of transformers that compute in fp32 by name."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def without_casts_to_fp32(name: str) -> Iterator[None]:
    """Where transformers computes in fp32 whatever the dtype of a model, it computes in fp64: norms, angles, softmax,
    products of whole and real numbers, and constants of the model if it is built here."""
    pytest.importorskip("transformers")
    family = FAMILIES[name].model.lower()
    module = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    ropes = pytest.importorskip("transformers.modeling_rope_utils")
    with ExitStack() as stack:
        for one in (module, ropes):
            stack.enter_context(patch.object(one, "torch", _Fp64()))
        stack.enter_context(patch.object(torch.Tensor, "float", torch.Tensor.double))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        yield
