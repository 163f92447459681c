"""Models of published families, every size small: settings of transformers, the settings that say the same here, and
the names of weights there. To add one, add a row to `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megascratch.config.resolve import ResolvedModel

SEQUENCE = 24
EPSILON = 1e-6
LLAMA = {
    "embedding.word": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "layers": "model.layers",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.proj": "self_attn.o_proj",
    "attention.sinks": "self_attn.sinks",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}
"""Part of a model here -> its name in a Llama there. A family that has all of `attention.qkv` or of `mlp.fc1` as one
matrix has a name for that, too."""


class Family(NamedTuple):
    """A model of transformers, and the settings that say the same here."""

    model: str
    """Its class there, without ForCausalLM."""
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    names: Mapping[str, str] = {}
    """Where they differ from `LLAMA`."""
    change: Callable[[dict[str, Tensor], ResolvedModel], dict[str, Tensor]] | None = None
    """Another form of the tensors that `under_their_names` makes."""


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
    "post_norm1": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "post_norm2": "post_feedforward_layernorm",
}
WITH_BIASES = {
    "normalization": "LayerNorm",
    "swiglu": False,
    "add_bias_linear": True,
}
"""A model with LayerNorm, an MLP without a gate, and biases."""
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
        {"attention.qkv": "self_attn.qkv_proj", "mlp.fc1": "mlp.gate_up_proj"},
    )


def heads_of_q_k_and_v(tensors: dict[str, Tensor], model: ResolvedModel) -> dict[str, Tensor]:
    """GPT-NeoX: q, k and v of each head follow each other."""
    changed = dict(tensors)
    for name, tensor in tensors.items():
        if ".query_key_value." in name:
            by_part = tensor.view(3, model.num_attention_heads, model.kv_channels, -1)
            changed[name] = by_part.transpose(0, 1).reshape(tensor.shape)
    return changed


def by_heads(tensors: dict[str, Tensor], model: ResolvedModel) -> dict[str, Tensor]:
    """Qwen3-Next: the gate of a head follows its query, and what DeltaNet reads is told by key head."""
    changed = {}
    for name, tensor in tensors.items():
        if ".in_proj." in name:
            changed |= _inputs_by_key_head(name, tensor, model)
            continue
        if "conv1d" in name:
            tensor = tensor[:, None]
        if "output_gate" in name:
            continue
        if ".q_proj." in name:
            gate = tensors[name.replace("q_proj", "output_gate")]
            shape = (model.num_attention_heads, model.kv_channels, -1)
            both = torch.stack((tensor.view(shape), gate.view(shape)), 1)
            tensor = both.flatten(0, 2)
        changed[name] = tensor
    return changed


def _inputs_by_key_head(name: str, tensor: Tensor, model: ResolvedModel) -> dict[str, Tensor]:
    keys = model.linear_num_key_heads
    key = keys * model.linear_key_head_dim
    values = model.linear_num_value_heads
    value = values * model.linear_value_head_dim
    parts = tensor.split((key, key, value, value, values, values))
    by_head = [part.view(keys, -1, tensor.shape[1]) for part in parts]
    return {
        name.replace("in_proj", "in_proj_qkvz"): torch.cat(by_head[:4], 1).flatten(0, 1),
        name.replace("in_proj", "in_proj_ba"): torch.cat(by_head[4:], 1).flatten(0, 1),
    }


def one_expert(tensors: dict[str, Tensor], model: ResolvedModel) -> dict[str, Tensor]:
    """gpt-oss with one expert, which every token has: gate and up alternate, and matrices are transposed."""
    changed = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            gate_first = tensor.view(2, -1, *tensor.shape[1:]) if "gate_up" in name else None
            if gate_first is not None:
                tensor = gate_first.transpose(0, 1).reshape(tensor.shape)
            if name.endswith(".weight"):
                changed[name.removesuffix(".weight")] = tensor.t()[None]
            else:
                changed[name.replace(".bias", "_bias")] = tensor[None]
            continue
        changed[name] = tensor
    return changed


DELTA_NET = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
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
    "Qwen2": Family(
        "Qwen2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rotary_base": 1e6, "add_qkv_bias": True},
    ),
    "Granite": Family(
        "Granite",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.3,
            "logits_scaling": 16.0,
        },
        {
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "softmax_scale": 0.3,
            "logit_scale": 1 / 16,
        },
    ),
    "GLM-4": Family(
        "Glm4",
        {
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
        },
        {
            "add_qkv_bias": True,
            "rotary_percent": 0.5,
            "rotary_interleaved": True,
            "norm_placement": "both",
        },
        {
            "post_norm1": "post_self_attn_layernorm",
            "post_norm2": "post_mlp_layernorm",
            "mlp.fc1": "mlp.gate_up_proj",
        },
    ),
    "StarCoder2": Family(
        "Starcoder2",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
            "hidden_act": "gelu_pytorch_tanh",
            "use_bias": True,
            "norm_epsilon": EPSILON,
            "sliding_window": 6,
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
        },
        {**WITH_BIASES, "rotary_base": 1e5, "openai_gelu": True, "sliding_window": 6},
        {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
    ),
    "GPT-NeoX": Family(
        "GPTNeoX",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.25,
            },
            "hidden_act": "gelu",
            "layer_norm_eps": EPSILON,
            "hidden_dropout": 0.0,
        },
        {
            **WITH_BIASES,
            "rotary_percent": 0.25,
            "num_query_groups": 4,
            "parallel_residual": True,
        },
        {
            "embedding.word": "gpt_neox.embed_in",
            "final_norm": "gpt_neox.final_layer_norm",
            "layers": "gpt_neox.layers",
            "attention.qkv": "attention.query_key_value",
            "attention.proj": "attention.dense",
            "mlp.fc1": "mlp.dense_h_to_4h",
            "mlp.fc2": "mlp.dense_4h_to_h",
        },
        heads_of_q_k_and_v,
    ),
    "Qwen3-Next without experts": Family(
        "Qwen3Next",
        {
            "mlp_only_layers": [0, 1, 2, 3],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "partial_rotary_factor": 0.25,
            },
            **DELTA_NET,
        },
        {
            "rotary_base": 1e6,
            "rotary_percent": 0.25,
            "apply_layernorm_1p": True,
            "qk_layernorm": True,
            "attention_output_gate": True,
            "mixers": [*["gated_delta_net"] * 3, "attention"],
            **DELTA_NET,
        },
        {
            "gated_delta_net.inputs": "linear_attn.in_proj",
            "gated_delta_net.convolution": "linear_attn.conv1d.weight",
            "gated_delta_net.log_decay": "linear_attn.A_log",
            "gated_delta_net.step_bias": "linear_attn.dt_bias",
            "gated_delta_net.norm": "linear_attn.norm.weight",
            "gated_delta_net.proj": "linear_attn.out_proj",
        },
        by_heads,
    ),
    "gpt-oss with one expert": Family(
        "GptOss",
        {
            "num_local_experts": 1,
            "num_experts_per_tok": 1,
            "experts_implementation": "eager",
            "sliding_window": 5,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "original_max_position_embeddings": 12,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
        {
            **stretched("yarn", 32.0),
            "rope_truncate": False,
            "rotary_base": 150000.0,
            "sliding_window": 5,
            "window_attn_skip_freq": [2],
            "softmax_type": "learnable",
            "swiglu": False,
            "activation_function": "quick_geglu",
            "activation_func_clamp_value": 7.0,
            "glu_linear_offset": 1.0,
            "add_bias_linear": True,
        },
        {"mlp.fc1": "mlp.experts.gate_up_proj", "mlp.fc2": "mlp.experts.down_proj"},
        one_expert,
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
