"""Lists the layouts that `megascratch verify` runs for a config. A `Case` is a name and a config that is ready to run.

There are three ways to choose: the config's own layout, every legal layout up to a number of ranks, or a random sample
of layout x schedule x cut x other settings that must not change the model. A layout is legal if the user's own numbers
allow it, not those of the small model that is run.
"""

import random
from collections.abc import Callable, Collection
from itertools import product
from math import prod
from typing import Any, NamedTuple

from megascratch.config import registry
from megascratch.config.errors import SettingError, UserError
from megascratch.config.fields import flag, flat
from megascratch.config.laws import validate
from megascratch.config.layer_patterns import fitted_patterns
from megascratch.config.layout import Layout
from megascratch.config.resolve import (
    Found,
    ResolvedConfig,
    Values,
    derive,
    resolve_derived,
)
from megascratch.config.settings import ModelConfig, ParallelConfig
from megascratch.config.stage_string import string_of_layers
from megascratch.pipeline.schedule import Placement
from megascratch.verification.random_schedule import random_schedule_file
from megascratch.verification.shrink import ranks_of_heads, shrunk
from megascratch.verification.small_layout import small_batch, small_cut

SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "data_parallel_size",
    "context_parallel_size",
)
TRIES = 300  # for each random layout that is requested

KINDS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "llama": {
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "swiglu": True,
        "add_bias_linear": False,
        "num_query_groups": 4,
        "untie_embeddings_and_output_weights": True,
    },
    "rotary": {
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "squared_relu": True,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "num_query_groups": 1,
    },
    "megatron": {
        "position_embedding_type": "rope",
        "rotary_interleaved": True,
        "rotary_seq_len_interpolation_factor": 2.0,
        "add_bias_linear": False,
        "norm_bias": True,
        "apply_layernorm_1p": True,
    },
}
KINDS |= {
    "norms of queries and keys": KINDS["llama"] | {"qk_layernorm": True},
    "olmo": KINDS["llama"]
    | {"qk_layernorm": True, "qk_layernorm_over": "all_heads", "norm_placement": "post"},
    "gemma": KINDS["llama"]
    | {
        "qk_layernorm": True,
        "apply_layernorm_1p": True,
        "norm_placement": "both",
        "embedding_scale": 8.0,
        "swiglu": False,
        "activation_function": "geglu",
        "sliding_window": 300,
        "window_attn_skip_freq": [2],
        "rotary_base_windowed": 1000.0,
        "rope_scaling_type": "linear",
        "rope_scaling_factor": 8.0,
        "attn_logit_softcapping": 50.0,
        "softmax_scale": 0.2,
        "untie_embeddings_and_output_weights": False,
    },
    "gpt-oss": KINDS["llama"]
    | {
        "softmax_type": "learnable",
        "sliding_window": 128,
        "window_attn_skip_freq": [2],
        "rope_scaling_type": "yarn",
        "rope_scaling_factor": 32.0,
        "rope_original_max_position_embeddings": 256,
        "rope_truncate": False,
        "swiglu": False,
        "activation_function": "quick_geglu",
        "activation_func_clamp_value": 7.0,
        "glu_linear_offset": 1.0,
        "add_qkv_bias": True,
        "attention_output_bias": True,
    },
    "neox": {
        "position_embedding_type": "rope",
        "rotary_percent": 0.25,
        "parallel_residual": True,
        "untie_embeddings_and_output_weights": True,
    },
    "smollm": KINDS["llama"]
    | {
        "no_rope_freq": [2],
        "rope_scaling_type": "llama3",
        "rope_scaling_factor": 8.0,
        "rope_original_max_position_embeddings": 256,
    },
    "stretched by length": KINDS["llama"]
    | {
        "rotary_percent": 0.5,
        "rope_scaling_type": "dynamic",
        "rope_scaling_factor": 4.0,
        "rope_original_max_position_embeddings": 512,
    },
    "deltanet": KINDS["llama"]
    | {
        "mixers": ["gated_delta_net", "attention"],
        "linear_value_head_dim": 192,
        "attention_output_gate": True,
        "qk_layernorm": True,
    },
    "gated": KINDS["llama"]
    | {"attention_output_gate": True, "residual_scale": 0.5, "softmax_type": "off-by-one"},
}
"""Kinds of models that `verify --random` draws from; the first is the default."""

RECOMPUTE: list[Values] = [
    {},
    {"recompute_granularity": "selective"},
    {"recompute_granularity": "selective", "recompute_modules": ["layernorm"]},
    {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "layernorm", "mlp"]},
    {"recompute_granularity": "full"},
    {"recompute_granularity": "full", "recompute_num_layers": 2},
    {"recompute_granularity": "full", "recompute_method": "block"},
]
OVERLAP: list[Values] = [{}, {}, {"overlap_grad_reduce": False}, {"overlap_param_gather": False}]
BUCKETS: list[Values] = [{}, {"ddp_bucket_size": 700}, {"ddp_bucket_size": 5000}]
MEANS: list[Values] = [{}, {}, {"calculate_per_token_loss": False}]
RATES: list[Values] = [
    {},
    {},
    {"decoupled_lr": 3e-3},
    {"weight_decay_incr_style": "cosine", "start_weight_decay": 0.0, "end_weight_decay": 0.2},
]
OFFLOAD: list[Values] = [
    {},
    {},
    {"optimizer_cpu_offload": True},
    {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.5},
]
DOCUMENTS = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}


class Case(NamedTuple):
    """One layout to verify."""

    name: str
    config: ResolvedConfig  # legal

    @classmethod
    def of(cls, settings: Values) -> "Case":
        """Resolves legal settings."""
        config = resolve_derived(derive(settings, _world(settings)), Found())
        return cls(name_of(flat(config)), config)

    def but(self, **settings: Any) -> "Case":
        """The case with some settings replaced, under its name."""
        return self._replace(config=resolve_derived(flat(self.config) | settings, Found()))


def own_layout(settings: Values, full_size: bool) -> Case:
    """The layout that the settings ask for, on as many ranks as they name (data parallel size 1 if they name none).

    Raises: SettingError for illegal settings.
    """
    validate(settings, _world(settings))
    whole = Case.of(settings)
    if full_size:
        return whole
    parallel = whole.config.parallel
    small = small_cut(whole.config.model, parallel)
    small |= small_batch(whole.config.training, parallel)
    narrow = shrunk(flat(whole.config), ranks_of_heads(settings), settings["context_parallel_size"])
    return Case.of({**narrow, **small})


def every_layout(
    settings: Values, max_world: int, fixed: Collection[str], full_size: bool
) -> list[Case]:
    """Every legal layout of 1 to `max_world` ranks: sizes x schedules x sequence parallel x ZeRO-1, without options
    that have no effect on a layout. Layout settings named in `fixed` stay as they are.

    Raises: UserError if no layout is legal.
    """
    cases: dict[str, Case] = {}
    for tp, pp, dp, cp in _sizes(max_world):
        options: dict[str, list[Any]] = {
            "tensor_model_parallel_size": [tp],
            "pipeline_model_parallel_size": [pp],
            "data_parallel_size": [dp],
            "context_parallel_size": [cp],
            "cp_comm_type": ["p2p", "all_gather", "a2a"] if cp > 1 else ["p2p"],
            "pipeline_schedule": list(registry.names("schedule")) if pp > 1 else ["1f1b"],
            "num_virtual_stages_per_pipeline_rank": [1, 2] if pp > 1 else [1],
            "sequence_parallel": [False, True] if tp > 1 else [False],
            "use_distributed_optimizer": [False, True] if dp > 1 else [False],
        }
        for values in product(*options.values()):
            layout = dict(zip(options, values, strict=True))
            batch = {"micro_batch_size": 1, "global_batch_size": dp * max(2, 2 * pp)}
            case = _case(settings, layout | batch, {}, fixed, max_world, full_size)
            if case is not None:
                cases.setdefault(case.name, case)
    return _require_some(list(cases.values()), settings, max_world, fixed)


def random_layouts(
    settings: Values,
    max_world: int,
    number: int,
    seed: int,
    fixed: Collection[str],
    given: Collection[str],
    full_size: bool,
) -> list[Case]:
    """`number` random legal cases. Settings of model, data and batch that the user gave by flag or file (`given`) stay.
    If none of the model's settings was given, the kind of model is drawn as well.

    Raises: UserError if no layout is legal.
    """
    stream = random.Random(seed)
    cases: dict[str, Case] = {}
    for _ in range(TRIES * number):
        if len(cases) == number:
            break
        layout, extra = _drawn(stream, max_world, fixed, given, full_size)
        case = _case(settings, layout, extra, fixed, max_world, full_size)
        if case is not None:
            cases.setdefault(case.name, case)
    drawn = _require_some(list(cases.values()), settings, max_world, fixed)
    # so that process groups are rarely rebuilt
    return sorted(drawn, key=lambda case: _world(flat(case.config)))


def _require_some(
    cases: list[Case], settings: Values, max_world: int, fixed: Collection[str]
) -> list[Case]:
    """The cases. Raises: UserError if there is none."""
    if not cases:
        given = ", ".join(
            f"{flag(name)} {settings[name]}" for name in fixed if name in vars(ParallelConfig())
        )
        law = f"no layout of up to {max_world} ranks is legal for this config"
        raise UserError(f"{law} with {given}" if given else law)
    return cases


def _sizes(max_world: int) -> list[tuple[int, int, int, int]]:
    """Every (tp, pp, dp, cp) of at most `max_world` ranks, those of few ranks first."""
    numbers = range(1, max_world + 1)
    sizes = product(numbers, numbers, numbers, numbers)
    fitting = [each for each in sizes if prod(each) <= max_world]
    return sorted(fitting, key=lambda each: (prod(each), each))


def _drawn(
    stream: random.Random,
    max_world: int,
    fixed: Collection[str],
    given: Collection[str],
    full_size: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws (layout and batch, other settings) at random. They may be illegal."""
    tp, pp, dp, cp = stream.choice(_sizes(max_world))
    schedule = stream.choice(registry.names("schedule"))
    chunks = stream.choice((1, 2))
    micro = stream.choice((1, 2))
    layout: dict[str, Any] = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "data_parallel_size": dp,
        **_drawn_context(stream, cp),
        "pipeline_schedule": schedule,
        "num_virtual_stages_per_pipeline_rank": chunks,
        "sequence_parallel": stream.random() < 0.5,
        "use_distributed_optimizer": stream.random() < 0.5,
        "micro_batch_size": micro,
        "global_batch_size": micro * dp * stream.randint(1, 2 * pp + 2),
    }
    if schedule == "csv" and not {*SIZES, *_OF_A_FILE} & set(fixed):
        placement = Placement(pp, chunks, folded=chunks == 2 and stream.random() < 0.5)
        microbatches = layout["global_batch_size"] // (micro * dp)
        layout["pipeline_schedule_csv"] = random_schedule_file(stream, placement, microbatches)
    if not full_size:
        layout |= _drawn_cut(stream, pp, chunks)
    extra: dict[str, Any] = {}
    for options in (OVERLAP, BUCKETS, RECOMPUTE, OFFLOAD, MEANS, RATES):
        names = {name for values in options for name in values}
        if names.isdisjoint(given):
            extra |= stream.choice(options)
    if not set(given) & set(vars(ModelConfig())) and not full_size:
        extra |= stream.choice(list(KINDS.values()))
        extra |= stream.choice(({}, {"hidden_dropout": 0.0, "attention_dropout": 0.0}))
        extra |= {"vocab_size": stream.choice((50257, 50304, 32000, 65))}
        extra |= stream.choice(({}, {}, {"padded_vocab_in_softmax": True}))
    if not set(given) & set(DOCUMENTS):
        extra |= stream.choice(({}, DOCUMENTS))
    return layout, extra


def _drawn_context(stream: random.Random, cp: int) -> dict[str, Any]:
    """Draws how `cp` ranks share sequences."""
    heads = stream.choice([size for size in range(1, cp + 1) if cp % size == 0])
    kind = stream.choice(("p2p", "p2p", "all_gather", "a2a", "a2a+p2p"))
    order = stream.choice((None, "zigzag", "documents", "contiguous"))
    if cp == 1:
        return {"context_parallel_size": 1}
    return {
        "context_parallel_size": cp,
        "cp_comm_type": kind,
        "context_parallel_order": order,
        "hierarchical_context_parallel_sizes": [heads, cp // heads] if kind == "a2a+p2p" else None,
    }


def _drawn_cut(stream: random.Random, pp: int, chunks: int) -> dict[str, Any]:
    """Draws how the layers are cut into stages: evenly (no settings), with a first stage of its own size, with ends
    that count as layers, or any cut as numbers or as text, empty stages included."""
    kinds = ("even", "even", "first", "explicit", "text", "ends")
    kind = stream.choice(kinds) if pp > 1 else "even"
    if kind == "first":
        return {"num_layers": (pp + 1) * chunks, "decoder_first_pipeline_num_layers": 2 * chunks}
    if kind in ("explicit", "text"):
        cut = [stream.choice((0, 1, 1, 2)) for _ in range(pp * chunks)]
        layout = cut if kind == "explicit" else string_of_layers(cut)
        return {"num_layers": sum(cut), "pipeline_model_parallel_layout": layout}
    if kind == "ends":
        embedding, loss = stream.choice(((True, False), (False, True), (True, True)))
        return {
            "num_layers": 2 * pp * chunks - embedding - loss,
            "account_for_embedding_in_pipeline_split": embedding,
            "account_for_loss_in_pipeline_split": loss,
        }
    return {}


def _case(
    settings: Values,
    layout: Values,
    extra: Values,
    fixed: Collection[str],
    max_world: int,
    full_size: bool,
) -> Case | None:
    """The case of a layout, with `fixed` settings as given; None if the given numbers do not allow it."""
    defaults = vars(ParallelConfig())
    start = defaults | {name: settings[name] for name in _NO_LAYOUT}
    kept = {name: settings[name] for name in fixed if name in defaults}
    whole: Values = {**settings, **start, **layout, **kept, **extra}
    whole = {**whole, **fitted_patterns(whole, whole["num_layers"])}
    world = _world(whole)
    try:
        validate(whole, world)
    except SettingError:
        return None
    if world > max_world:
        return None
    if not full_size:
        cut = {}
        if "num_layers" not in layout:
            config = Case.of(whole).config
            cut = small_cut(config.model, config.parallel)
        whole = {**shrunk(whole, max_world, max_world), **cut}
    return Case.of(whole)


_NO_LAYOUT = (
    "cp_comm_type",
    "context_parallel_order",
    "hierarchical_context_parallel_sizes",
    "offload_modules",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "ddp_bucket_size",
    "optimizer_cpu_offload",
    "optimizer_offload_fraction",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
    "distributed_backend",
    "distributed_timeout_minutes",
    "start_timeout_minutes",
    "load_timeout_minutes",
)


_OF_A_FILE = ("pipeline_schedule", "pipeline_schedule_csv", "num_virtual_stages_per_pipeline_rank")


def _world(values: Values) -> int:
    return Layout.of_values(values).world


def name_of(values: Values) -> str:
    """A short name that distinguishes resolved settings from the others of one verification."""
    tp, pp, dp, cp = (values[name] for name in SIZES)
    words = [f"tp{tp}.pp{pp}.dp{dp}" + (f".cp{cp}" if cp > 1 else "")]
    if cp > 1:
        words += _words_of_context(values)
    if pp > 1:
        schedule = values["pipeline_schedule"]
        chunks = values["num_virtual_stages_per_pipeline_rank"]
        words.append(f"{schedule}/{chunks}" if chunks > 1 else schedule)
    for text, applies in _WORDS.items():
        if applies(values):
            words.append(text)
    if values["recompute_granularity"] == "selective" and values["recompute_modules"] != [
        "core_attn"
    ]:
        place = words.index("selective recompute")
        words[place] += f" of {' '.join(values['recompute_modules'])}"
    cut = values["pipeline_model_parallel_layout"] or values["decoder_first_pipeline_num_layers"]
    if isinstance(cut, list):
        words.append(f"cut {' '.join(map(str, cut))}")
    elif isinstance(cut, str):
        words.append(f"cut {cut}")
    elif cut:
        words.append(f"cut {cut} first")
    micro = values["micro_batch_size"]
    microbatches = values["global_batch_size"] // (micro * dp)
    words.append(f"{microbatches} x {micro}")
    return ", ".join(words)


def _words_of_context(values: Values) -> list[str]:
    """How context ranks share sequences."""
    kind = values["cp_comm_type"]
    words = [kind]
    if kind == "a2a+p2p":
        words = [f"{kind} {'x'.join(map(str, values['hierarchical_context_parallel_sizes']))}"]
    default = "contiguous" if kind == "a2a" else "zigzag"
    if values["context_parallel_order"] != default:
        words.append(values["context_parallel_order"])
    return words


_WORDS: dict[str, Callable[[Values], bool]] = {
    "SP": lambda values: values["sequence_parallel"] and values["tensor_model_parallel_size"] > 1,
    "ZeRO-1": lambda values: (
        values["use_distributed_optimizer"] and values["data_parallel_size"] > 1
    ),
    "no overlap": lambda values: (
        not values["overlap_grad_reduce"] and values["data_parallel_size"] > 1
    ),
    "gather at once": lambda values: (
        not values["overlap_param_gather"]
        and values["use_distributed_optimizer"]
        and values["data_parallel_size"] > 1
    ),
    "offload": lambda values: values["optimizer_cpu_offload"],
    "selective recompute": lambda values: values["recompute_granularity"] == "selective",
    "full recompute": lambda values: values["recompute_granularity"] == "full",
    "documents": lambda values: values["reset_attention_mask"],
    "dropout": lambda values: values["hidden_dropout"] > 0 or values["attention_dropout"] > 0,
    "embedding counts": lambda values: values["account_for_embedding_in_pipeline_split"],
    "output layer counts": lambda values: values["account_for_loss_in_pipeline_split"],
    "GQA": lambda values: values["num_query_groups"] != values["num_attention_heads"],
    "rope": lambda values: values["position_embedding_type"] == "rope",
    "untied": lambda values: values["untie_embeddings_and_output_weights"],
}
