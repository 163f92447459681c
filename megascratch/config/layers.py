"""The model as a list of layers: what each layer is, as plain records made from the settings. Needs no torch.

`layers_of` is the only place that decides which layer is of which kind. A pattern (rotary positions in every second
layer, another mixer in the first) is a list in which the records differ; the code that builds a layer, counts it or
runs it reads the records and needs no change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

from megascratch.config.layer_patterns import has_window, is_unrotated
from megascratch.config.part_options import Options, PartName, options_of
from megascratch.config.resolve import ResolvedModel
from megascratch.config.settings import ModelConfig

NormPlacement = Literal["pre", "post", "both"]


class SublayerSpec(Protocol):
    """What a mixer or a feed-forward is built from: a frozen dataclass, so that equal layers can be told by it."""

    @property
    def kind(self) -> str:
        """Its row in `MIXERS` or `FEED_FORWARDS`, or the name under which it is registered; part of the names of its
        weights: ``layers.3.KIND.*``."""


@dataclass(frozen=True)
class RopeSpec:
    """A kind of rotary positions. Layers of the same kind share one table of angles."""

    dims: int  # the first dims of each head, which are rotated
    base: float
    interleaved: bool = False  # dims 2i and 2i + 1 rotate together, instead of i and i + dims/2
    interpolation: float = 1.0  # positions are divided by it
    scaling: "RopeScaling | None" = None


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a rope are changed for samples that are longer than those it was made for."""

    kind: Literal["dynamic", "llama3", "yarn", "longrope"]
    factor: float | None
    original_length: int | None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class AttentionSpec:
    """Causal self-attention."""

    kind: ClassVar[str] = "attention"
    heads: int
    groups: int  # key/value heads
    head_width: int
    qkv_bias: bool
    output_bias: bool
    dropout: float  # of the attention weights
    rope: RopeSpec | None  # None: this layer does not rotate
    scale: float | None = None  # of the products of queries and keys; None: 1 / sqrt(head_width)
    window: int | None = None  # tokens that a query sees, itself included; None: all before it
    softcap: float | None = None  # scores are bent into plus or minus this
    sinks: Literal["vanilla", "off-by-one", "learnable"] = "vanilla"
    qk_norm: "NormSpec | None" = None  # of queries and keys, before they rotate
    qk_norm_over: Literal["head", "all_heads"] = "head"
    output_gate: bool = False


@dataclass(frozen=True)
class MLPSpec:
    """Two linear layers around an activation."""

    kind: ClassVar[str] = "mlp"
    width: int
    activation: str  # a row of `ACTIVATIONS`, or registered
    bias: bool
    activation_options: Options = ()
    clamp: float | None = None  # of a gated activation: see `activation_func_clamp_value`
    linear_offset: float = 0.0  # added to the half that is not the gate


@dataclass(frozen=True)
class GatedDeltaNetSpec:
    """Linear attention with a state per head; see `layers/gated_delta_net.py`."""

    kind: ClassVar[str] = "gated_delta_net"
    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int  # tokens that its convolution reads
    epsilon: float  # of its norm


@dataclass(frozen=True)
class OwnSpec:
    """A mixer or feed-forward that a user registered: it is built from the settings of the model."""

    kind: str  # the name under which it is registered
    model: ResolvedModel
    options: Options


@dataclass(frozen=True)
class NormSpec:
    """A norm over the hidden dim."""

    kind: str  # a row of `NORMS`, or registered
    epsilon: float
    bias: bool
    minus_one: bool = False  # the stored weight is the factor minus one
    options: Options = ()


@dataclass(frozen=True)
class LayerSpec:
    """One block: ``x + dropout(post(mix(pre(x))))`` with the mixer, and the same with the feed-forward.

    `placement` says which norms there are: before a sublayer (pre: GPT-2, Llama), on what it returns (post: OLMo 2), or
    both (Gemma 2). A norm of the sum, as in the first Transformer, is none of these.
    """

    hidden_size: int
    mixer: SublayerSpec
    feed_forward: SublayerSpec
    norm: NormSpec
    placement: NormPlacement
    dropout: float  # of both residual branches
    std: float  # of the initial weights that read the residual stream
    output_std: float  # of the initial weights that write to it
    parallel: bool = False  # both branches read the same hidden states
    residual_scale: float | None = None  # of each branch before it is added


def layers_of(model: ResolvedModel) -> tuple[LayerSpec, ...]:
    """The blocks of the model in order."""
    mixers = []
    for name in model.mixers or ["attention"]:
        make = MIXER_SPECS.get(name)
        mixers.append(make(model) if make else _own(PartName("mixer", name), model))
    feed_forwards = []
    for name in model.feed_forwards or ["mlp"]:
        make = FEED_FORWARD_SPECS.get(name)
        feed_forwards.append(make(model) if make else _own(PartName("feed_forward", name), model))
    # GPT-2: each layer adds to the residual stream twice, and the sum keeps its scale
    output_std = model.init_method_std / (2 * model.num_layers) ** 0.5
    norm = norm_of(model)
    layers = []
    for number in range(model.num_layers):
        layer = LayerSpec(
            hidden_size=model.hidden_size,
            mixer=_in_layer(mixers[number % len(mixers)], model, number),
            feed_forward=feed_forwards[number % len(feed_forwards)],
            norm=norm,
            placement=model.norm_placement,
            dropout=model.hidden_dropout,
            std=model.init_method_std,
            output_std=output_std,
            parallel=model.parallel_residual,
            residual_scale=model.residual_scale,
        )
        layers.append(layer)
    return tuple(layers)


def norm_of(model: ResolvedModel) -> NormSpec:
    """The norm of the blocks, and the one after the last of them."""
    options = options_of(PartName("norm", model.normalization), model.layer_options)
    return NormSpec(
        model.normalization, model.norm_epsilon, model.norm_bias, model.apply_layernorm_1p, options
    )


def activation_of(model: ModelConfig) -> str:
    """The name of the MLP's activation: the one of the exclusive settings that is given (law `one_activation`), or
    exact GELU."""
    if model.activation_function is not None:
        return model.activation_function
    if model.swiglu:
        return "swiglu"
    if model.squared_relu:
        return "squared_relu"
    if model.openai_gelu:
        return "openai_gelu"
    return "gelu"


def _attention(model: ResolvedModel) -> SublayerSpec:
    """Without what differs between layers: see `_in_layer`."""
    return AttentionSpec(
        heads=model.num_attention_heads,
        groups=model.num_query_groups,
        head_width=model.kv_channels,
        qkv_bias=model.add_bias_linear or model.add_qkv_bias,
        output_bias=model.attention_output_bias,
        dropout=model.attention_dropout,
        rope=None,
        scale=model.softmax_scale,
        softcap=model.attn_logit_softcapping,
        sinks=model.softmax_type,
        qk_norm=norm_of(model) if model.qk_layernorm else None,
        qk_norm_over=model.qk_layernorm_over,
        output_gate=model.attention_output_gate,
    )


def _gated_delta_net(model: ResolvedModel) -> SublayerSpec:
    return GatedDeltaNetSpec(
        key_heads=model.linear_num_key_heads,
        value_heads=model.linear_num_value_heads,
        key_width=model.linear_key_head_dim,
        value_width=model.linear_value_head_dim,
        kernel=model.linear_conv_kernel_dim,
        epsilon=model.norm_epsilon,
    )


def _mlp(model: ResolvedModel) -> SublayerSpec:
    activation = activation_of(model)
    options = options_of(PartName("activation", activation), model.layer_options)
    return MLPSpec(
        model.ffn_hidden_size,
        activation,
        model.add_bias_linear,
        options,
        model.activation_func_clamp_value,
        model.glu_linear_offset,
    )


def _own(part: PartName, model: ResolvedModel) -> SublayerSpec:
    return OwnSpec(part.name, model, options_of(part, model.layer_options))


MIXER_SPECS: Mapping[str, Callable[[ResolvedModel], SublayerSpec]] = {
    "attention": _attention,
    "gated_delta_net": _gated_delta_net,
}
FEED_FORWARD_SPECS: Mapping[str, Callable[[ResolvedModel], SublayerSpec]] = {"mlp": _mlp}
"""Kind -> what makes its spec from the settings; every other kind is registered, and has an `OwnSpec`."""


def _in_layer(mixer: SublayerSpec, model: ResolvedModel, layer: int) -> SublayerSpec:
    """The mixer as layer number `layer`: attention may have a window there, and another rope or none."""
    if not isinstance(mixer, AttentionSpec):
        return mixer
    window = None
    if has_window(model.window_attn_skip_freq, layer):
        window = model.sliding_window
    rope = None
    rotates = model.position_embedding_type == "rope"
    if rotates and not is_unrotated(model.no_rope_freq, layer):
        rope = _rope(model, windowed=window is not None)
    return replace(mixer, window=window, rope=rope)


def _rope(model: ResolvedModel, windowed: bool) -> RopeSpec:
    """The rope of a layer. A base for windowed layers comes without scaling: their window is as short as ever."""
    dims = int(model.kv_channels * model.rotary_percent) // 2 * 2
    if windowed and model.rotary_base_windowed is not None:
        return RopeSpec(dims, model.rotary_base_windowed, model.rotary_interleaved)
    interpolation = model.rotary_seq_len_interpolation_factor or 1.0
    if model.rope_scaling_type == "linear":
        interpolation = model.rope_scaling_factor or 1.0
    return RopeSpec(
        dims, model.rotary_base, model.rotary_interleaved, interpolation, _rope_scaling(model)
    )


def _rope_scaling(model: ResolvedModel) -> RopeScaling | None:
    if model.rope_scaling_type is None or model.rope_scaling_type == "linear":
        return None
    return RopeScaling(
        kind=model.rope_scaling_type,
        factor=model.rope_scaling_factor,
        original_length=model.rope_original_max_position_embeddings,
        low_freq_factor=model.rope_low_freq_factor,
        high_freq_factor=model.rope_high_freq_factor,
        beta_fast=model.rope_beta_fast,
        beta_slow=model.rope_beta_slow,
        mscale=model.rope_mscale,
        mscale_all_dim=model.rope_mscale_all_dim,
        attention_factor=model.rope_attention_factor,
        truncate=model.rope_truncate,
        short_factors=tuple(model.rope_short_factors or ()),
        long_factors=tuple(model.rope_long_factors or ()),
    )
