"""The settings of the model: its layers, their sizes and their functions; see `settings.py`. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

from megascratch.config.declare import Needs, differs, equals, setting
from megascratch.config.ranges import above, at_least, within
from megascratch.config.resume_effects import (
    FIXED_PADDING,
    FIXED_POSITIONS,
    FIXED_TENSORS,
    FREE_LAYOUT,
    FREE_START,
    NOTICE_STEPS,
    REFUSED_FUNCTION,
)

_A_WINDOW = differs("sliding_window", None, "without sliding-window")
_A_SCALING = differs("rope_scaling_type", None, "without rope-scaling-type")
_AN_ORIGINAL = differs("rope_scaling_type", "linear")
_A_FACTOR = Needs(
    "rope_scaling_type",
    lambda found: found in ("yarn", "longrope"),
    "without rope-scaling-type yarn or longrope",
)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the Transformer."""

    num_layers: int = setting(12, FIXED_TENSORS, at_least(1))
    """Number of Transformer blocks."""
    hidden_size: int = setting(768, FIXED_TENSORS, at_least(1))
    """Width of the residual stream."""
    num_attention_heads: int = setting(12, FIXED_TENSORS, at_least(1))
    """Number of query heads."""
    num_query_groups: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Number of key/value heads (grouped-query attention); default: one per query head."""
    kv_channels: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Width of one head; default: hidden_size / num_attention_heads."""
    ffn_hidden_size: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Width of the MLP; default: 4 x hidden_size, with swiglu 8/3 x rounded up to a multiple of 64."""
    max_position_embeddings: int | None = setting(None, FIXED_POSITIONS, at_least(1))
    """Rows of the learned position table; default: seq_length."""
    position_embedding_type: Literal["learned_absolute", "rope", "none"] = setting(
        "learned_absolute", FIXED_TENSORS
    )
    """How the position of a token enters the model."""
    rotary_base: float = setting(
        10000.0, REFUSED_FUNCTION, above(0), needs=equals("position_embedding_type", "rope")
    )
    """Base of the rotary frequencies."""
    rotary_percent: float = setting(
        1.0, REFUSED_FUNCTION, within("(0, 1]"), needs=equals("position_embedding_type", "rope")
    )
    """Fraction of each head that is rotated."""
    rotary_interleaved: bool = setting(
        False, REFUSED_FUNCTION, needs=equals("position_embedding_type", "rope")
    )
    """Rotate pairs of neighbouring channels instead of the two halves of a head."""
    rotary_seq_len_interpolation_factor: float | None = setting(
        None, REFUSED_FUNCTION, above(0), needs=equals("position_embedding_type", "rope")
    )
    """Divide every position by this before it is rotated (position interpolation); default: 1."""
    rotary_base_windowed: float | None = setting(None, REFUSED_FUNCTION, above(0), needs=_A_WINDOW)
    """Base of the rotary frequencies in layers with a sliding window, which then are not scaled (Gemma 3); default: as
    in the other layers."""
    rope_scaling_type: Literal["linear", "dynamic", "llama3", "yarn", "longrope"] | None = setting(
        None, REFUSED_FUNCTION, needs=equals("position_embedding_type", "rope")
    )
    """How rotary frequencies are changed for longer samples; default: not at all."""
    rope_scaling_factor: float | None = setting(None, REFUSED_FUNCTION, above(0), needs=_A_SCALING)
    """With rope_scaling_type: how many times longer; longrope: default seq_length / the original length."""
    rope_original_max_position_embeddings: int | None = setting(
        None, REFUSED_FUNCTION, at_least(1), needs=_AN_ORIGINAL
    )
    """With dynamic, llama3, yarn and longrope: the length of samples before scaling."""
    rope_low_freq_factor: float = setting(
        1.0, REFUSED_FUNCTION, above(0), needs=equals("rope_scaling_type", "llama3")
    )
    """With llama3: frequencies with wavelengths above original length / this are divided by the factor."""
    rope_high_freq_factor: float = setting(
        4.0, REFUSED_FUNCTION, above(0), needs=equals("rope_scaling_type", "llama3")
    )
    """With llama3: frequencies with wavelengths below original length / this stay; between them is a ramp."""
    rope_beta_fast: float = setting(
        32.0, REFUSED_FUNCTION, above(0), needs=equals("rope_scaling_type", "yarn")
    )
    """With yarn: frequencies with more turns than this within the original length stay."""
    rope_beta_slow: float = setting(
        1.0, REFUSED_FUNCTION, above(0), needs=equals("rope_scaling_type", "yarn")
    )
    """With yarn: frequencies with fewer turns than this are divided by the factor; between them is a ramp."""
    rope_mscale: float | None = setting(
        None, REFUSED_FUNCTION, above(0), needs=equals("rope_scaling_type", "yarn")
    )
    """With yarn, as in DeepSeek: weight of the attention factor's growth, together with rope_mscale_all_dim."""
    rope_mscale_all_dim: float | None = setting(
        None, REFUSED_FUNCTION, above(0), needs=equals("rope_scaling_type", "yarn")
    )
    """With yarn: what the growth by rope_mscale is divided by."""
    rope_attention_factor: float | None = setting(None, REFUSED_FUNCTION, above(0), needs=_A_FACTOR)
    """With yarn and longrope: what cosine and sine are multiplied by; default: follows from the factor."""
    rope_truncate: bool = setting(True, REFUSED_FUNCTION, needs=equals("rope_scaling_type", "yarn"))
    """With yarn: round the ends of its ramp to whole dims (gpt-oss does not)."""
    rope_short_factors: list[float] | None = setting(
        None, REFUSED_FUNCTION, needs=equals("rope_scaling_type", "longrope")
    )
    """With longrope: what each frequency is divided by for samples up to the original length."""
    rope_long_factors: list[float] | None = setting(
        None, REFUSED_FUNCTION, needs=equals("rope_scaling_type", "longrope")
    )
    """With longrope: the same for longer samples."""
    qk_layernorm: bool = setting(False, FIXED_TENSORS)
    """A norm on queries and keys before they rotate."""
    qk_layernorm_over: Literal["head", "all_heads"] = setting(
        "head", FIXED_TENSORS, needs=equals("qk_layernorm", True)
    )
    """What that norm is over: each head by itself (Qwen3), or all heads of the queries, and of the keys, as one
    vector (OLMo 2)."""
    sliding_window: int | None = setting(None, REFUSED_FUNCTION, at_least(1))
    """Tokens that a query of a windowed layer sees, itself included; default: all before it."""
    window_attn_skip_freq: list[int] | None = setting(None, REFUSED_FUNCTION, needs=_A_WINDOW)
    """Which layers have the sliding window: one number N: all but every Nth; several: one for each layer, 1 with the
    window and 0 without; default: all."""
    no_rope_freq: list[int] | None = setting(
        None, REFUSED_FUNCTION, needs=equals("position_embedding_type", "rope")
    )
    """Which layers do not rotate: one number N: every Nth; several: one for each layer, 1 for a layer that does not;
    default: all rotate."""
    softmax_type: Literal["vanilla", "off-by-one", "learnable"] = setting("vanilla", FIXED_TENSORS)
    """An attention sink: a score that takes part in the softmax and has no value. off-by-one: it is 0; learnable: a
    weight of each head (gpt-oss)."""
    attn_logit_softcapping: float | None = setting(None, REFUSED_FUNCTION, above(0))
    """Bend attention scores into plus or minus this: cap * tanh(score / cap); default: not at all (Gemma 2: 50)."""
    final_logit_softcapping: float | None = setting(None, REFUSED_FUNCTION, above(0))
    """The same for the logits; default: not at all (Gemma 2: 30)."""
    softmax_scale: float | None = setting(None, REFUSED_FUNCTION, above(0))
    """What products of queries and keys are multiplied by; default: 1 / sqrt(kv_channels)."""
    attention_output_gate: bool = setting(False, FIXED_TENSORS)
    """Multiply what attention returns by the sigmoid of a gate, a second half of the query projection (Qwen3-Next)."""
    normalization: str = setting("LayerNorm", FIXED_TENSORS, names="norm")
    """Normalization layer."""
    norm_epsilon: float = setting(1e-5, REFUSED_FUNCTION, above(0))
    """Added to the variance inside the norm."""
    norm_bias: bool | None = setting(None, FIXED_TENSORS)
    """Biases on every LayerNorm; default: as add_bias_linear."""
    apply_layernorm_1p: bool = setting(False, REFUSED_FUNCTION)
    """Store the weight of every norm minus one, so that it keeps its precision near one in bf16 and fp16."""
    norm_placement: Literal["pre", "post", "both"] = setting("pre", FIXED_TENSORS)
    """Where a branch has its norm: before the sublayer (GPT-2, Llama), on what it returns (OLMo 2), or both (Gemma)."""
    parallel_residual: bool = setting(False, REFUSED_FUNCTION)
    """Attention and MLP of a layer read the same hidden states, and both are added to them (GPT-NeoX)."""
    embedding_scale: float | None = setting(None, REFUSED_FUNCTION, above(0))
    """What embeddings are multiplied by; default: 1 (Gemma: sqrt(hidden_size))."""
    residual_scale: float | None = setting(None, REFUSED_FUNCTION, above(0))
    """What each branch is multiplied by before it is added; default: 1 (Granite)."""
    logit_scale: float | None = setting(None, REFUSED_FUNCTION, above(0))
    """What logits are multiplied by; default: 1."""
    swiglu: bool = setting(False, FIXED_TENSORS)
    """Gated MLP: silu(gate) * up."""
    activation_function: str | None = setting(None, REFUSED_FUNCTION, names="activation")
    """The MLP's activation by name; default: the one of swiglu, squared_relu and openai_gelu that is given, or gelu."""
    squared_relu: bool = setting(False, REFUSED_FUNCTION)
    """relu(x)^2 as the MLP's activation."""
    openai_gelu: bool = setting(False, REFUSED_FUNCTION)
    """GELU in its tanh approximation, as in GPT-2 (default: exact GELU)."""
    activation_func_clamp_value: float | None = setting(None, REFUSED_FUNCTION, above(0))
    """With a gated activation: the gate is at most this, and the other half within plus or minus this (gpt-oss: 7)."""
    glu_linear_offset: float = setting(0.0, REFUSED_FUNCTION, at_least(0))
    """With a gated activation: added to the half that is not the gate (gpt-oss: 1)."""
    mixers: list[str] | None = setting(None, FIXED_TENSORS, names="mixer")
    """The kind of each layer's mixer, repeated over the layers: `attention shift` alternates; default: attention."""
    feed_forwards: list[str] | None = setting(None, FIXED_TENSORS, names="feed_forward")
    """The kind of each layer's feed-forward, repeated over the layers in the same way; default: mlp."""
    layer_options: list[str] | None = setting(None, REFUSED_FUNCTION)
    """NAME=VALUE for the norm, activation, mixers and feed-forwards that you registered: their keyword parameters."""
    linear_conv_kernel_dim: int = setting(4, FIXED_TENSORS, at_least(1))
    """Gated DeltaNet (mixers gated_delta_net): tokens that its short convolution reads."""
    linear_key_head_dim: int = setting(128, FIXED_TENSORS, at_least(1))
    """Gated DeltaNet: width of a query or key head."""
    linear_value_head_dim: int = setting(128, FIXED_TENSORS, at_least(1))
    """Gated DeltaNet: width of a value head."""
    linear_num_key_heads: int = setting(16, FIXED_TENSORS, at_least(1))
    """Gated DeltaNet: number of query and key heads."""
    linear_num_value_heads: int = setting(32, FIXED_TENSORS, at_least(1))
    """Gated DeltaNet: number of value heads."""
    add_bias_linear: bool = setting(True, FIXED_TENSORS)
    """Biases on every linear layer and, unless norm_bias says otherwise, on every LayerNorm."""
    add_qkv_bias: bool = setting(False, FIXED_TENSORS)
    """Biases on the query/key/value projection only."""
    attention_output_bias: bool | None = setting(None, FIXED_TENSORS)
    """A bias on attention's output projection; default: as add_bias_linear."""
    untie_embeddings_and_output_weights: bool = setting(False, FIXED_TENSORS)
    """Use a separate output matrix instead of sharing the word embedding."""
    hidden_dropout: float = setting(0.1, NOTICE_STEPS, within("[0, 1)"))
    """Dropout on the embedding and on both residual branches."""
    attention_dropout: float = setting(0.1, NOTICE_STEPS, within("[0, 1)"))
    """Dropout on the attention weights."""
    init_method_std: float = setting(0.02, FREE_START, above(0))
    """Standard deviation of the initial weights; projections into the residual stream get std / sqrt(2 num_layers)."""
    vocab_size: int | None = setting(None, FIXED_TENSORS, at_least(1))
    """Size of the vocabulary without padding; default: taken from the tokenizer."""
    make_vocab_size_divisible_by: int = setting(128, FREE_LAYOUT, at_least(1))
    """The embedding table is padded to a multiple of this x tensor_model_parallel_size; no result depends on it, unless
    padded_vocab_in_softmax."""
    padded_vocab_in_softmax: bool = setting(False, FIXED_TENSORS)
    """Let the padding rows of the vocabulary take part in the softmax and be trained, as in Megatron-LM. The model then
    depends on padded_vocab_size."""
    padded_vocab_size: int | None = setting(
        None, FIXED_PADDING, at_least(1), needs=equals("padded_vocab_in_softmax", True)
    )
    """With padded_vocab_in_softmax: rows of the vocabulary with padding; default: the checkpoint's number, or the next
    multiple of make_vocab_size_divisible_by x tensor_model_parallel_size."""
