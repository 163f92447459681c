"""The laws of rotary positions and of patterns of layers; see `laws/__init__.py` for how a law works."""

import math
from collections.abc import Callable

from megascratch.config.layer_patterns import fitted
from megascratch.config.remedies import Broken, Remedy

MOST_LAYERS_SHOWN = 16


def a_pattern_says_something_of_every_layer(
    num_layers: int, window_attn_skip_freq: list[int] | None, no_rope_freq: list[int] | None
) -> Broken | str | None:
    """A pattern is one number, or one 0 or 1 for each layer."""
    patterns = {"window_attn_skip_freq": window_attn_skip_freq, "no_rope_freq": no_rope_freq}
    for setting, pattern in patterns.items():
        if pattern is None:
            continue
        problem = _problem_of(setting, pattern, num_layers)
        if problem is not None:
            return problem
    return None


def _problem_of(setting: str, pattern: list[int], layers: int) -> Broken | str | None:
    name = setting.replace("_", "-")
    if not pattern:
        return f"{name} is an empty list: give one number, or {layers} of 0 or 1, or remove it"
    shown = " ".join(map(str, pattern))
    if len(pattern) == 1:
        if pattern[0] >= 1:
            return None
        return Broken(
            f"{name} ({shown}) must be at least 1: with N it picks every Nth layer",
            [Remedy(setting, [[[1]]], " or more")],
        )
    if not {0, 1}.issuperset(pattern):
        return f"{name} ({shown}) must be one number, or one 0 or 1 for each of {layers} layers"
    if len(pattern) == layers:
        return None
    fitting = [[fitted(pattern, layers)]] if layers <= MOST_LAYERS_SHOWN else []
    return Broken(
        f"{name} ({shown}) has {len(pattern)} numbers, and num-layers is {layers}: it must have one for each layer",
        [Remedy(setting, fitting), Remedy("num_layers", [[len(pattern)]])],
        "give one number",
    )


def rope_scaling_has_its_numbers(
    rope_scaling_type: str | None,
    rope_scaling_factor: float | None,
    rope_original_max_position_embeddings: int | None,
) -> str | None:
    """Every way to scale says how far, and all but the linear one from which length."""
    if rope_scaling_type is None:
        return None
    wanted = {
        "rope-original-max-position-embeddings": rope_original_max_position_embeddings,
        "rope-scaling-factor": rope_scaling_factor,
    }
    if rope_scaling_type == "linear":
        del wanted["rope-original-max-position-embeddings"]
    if rope_scaling_type == "longrope":  # its factor follows from the length
        del wanted["rope-scaling-factor"]
    missing = [name for name, value in wanted.items() if value is None]
    if not missing:
        return None
    return f"rope-scaling-type {rope_scaling_type} needs {' and '.join(missing)}: give a number"


def positions_are_interpolated_once(
    rope_scaling_type: str | None, rotary_seq_len_interpolation_factor: float | None
) -> str | None:
    """rope_scaling_type linear is that interpolation, and the other types have one of their own."""
    if rope_scaling_type is None or rotary_seq_len_interpolation_factor is None:
        return None
    return (
        f"rope-scaling-type {rope_scaling_type} and rotary-seq-len-interpolation-factor "
        f"({rotary_seq_len_interpolation_factor:g}) cannot be combined, since both stretch positions: remove one"
    )


def longrope_has_a_factor_for_each_frequency(
    rope_scaling_type: str | None,
    rope_short_factors: list[float] | None,
    rope_long_factors: list[float] | None,
    kv_channels: int,
    rotary_percent: float,
) -> str | None:
    """Two lists, each with a number above 0 for every two dims that rotate."""
    if rope_scaling_type != "longrope":
        return None
    frequencies = int(kv_channels * rotary_percent) // 2
    for name, factors in (
        ("rope-short-factors", rope_short_factors),
        ("rope-long-factors", rope_long_factors),
    ):
        number = len(factors or [])
        if number != frequencies:
            return (
                f"{name} has {number} numbers, and longrope needs one for every two dims that rotate "
                f"(kv-channels {kv_channels} x rotary-percent {rotary_percent:g} / 2): give {frequencies}"
            )
        for factor in factors or []:
            if not (factor > 0 and math.isfinite(factor)):
                return f"{name} has {factor:g}: a frequency is divided by a number above 0"
    return None


def the_ramp_of_frequencies_rises(
    rope_scaling_type: str | None,
    rope_low_freq_factor: float,
    rope_high_freq_factor: float,
    rope_beta_slow: float,
    rope_beta_fast: float,
) -> Broken | None:
    """Between frequencies that stay and those that are divided lies a ramp."""
    if rope_scaling_type == "llama3" and rope_low_freq_factor >= rope_high_freq_factor:
        return Broken(
            f"rope-low-freq-factor ({rope_low_freq_factor:g}) must be below rope-high-freq-factor "
            f"({rope_high_freq_factor:g})",
            [Remedy("rope_high_freq_factor", [[4 * rope_low_freq_factor]])],
        )
    if rope_scaling_type == "yarn" and rope_beta_slow > rope_beta_fast:
        return Broken(
            f"rope-beta-slow ({rope_beta_slow:g}) must be at most rope-beta-fast ({rope_beta_fast:g})",
            [Remedy("rope_beta_fast", [[32 * rope_beta_slow]])],
        )
    return None


def mscales_are_two(
    rope_scaling_type: str | None,
    rope_mscale: float | None,
    rope_mscale_all_dim: float | None,
    rope_attention_factor: float | None,
) -> str | None:
    """YaRN's attention factor is a quotient of two, unless it is given."""
    if rope_scaling_type != "yarn":
        return None
    if (rope_mscale is None) != (rope_mscale_all_dim is None):
        missing = "rope-mscale" if rope_mscale is None else "rope-mscale-all-dim"
        return f"rope-mscale and rope-mscale-all-dim go together: give {missing}, or remove both"
    if rope_mscale is not None and rope_attention_factor is not None:
        return (
            f"rope-attention-factor ({rope_attention_factor:g}) is what rope-mscale and rope-mscale-all-dim would "
            "give: remove it, or both of them"
        )
    return None


def scaled_frequencies_exist(
    rope_scaling_type: str | None,
    rotary_base: float,
    kv_channels: int,
    rotary_percent: float,
    rope_original_max_position_embeddings: int | None,
    rope_attention_factor: float | None,
) -> Broken | str | None:
    """The formulas divide by dims - 2 (dynamic), by log(base) (yarn) and by log(original length) (longrope)."""
    if rope_scaling_type == "yarn" and rotary_base <= 1:
        return Broken(
            f"rotary-base ({rotary_base:g}) must be above 1 with rope-scaling-type yarn",
            [Remedy("rotary_base", [[10000.0]])],
        )
    dims = int(kv_channels * rotary_percent)
    if rope_scaling_type == "dynamic" and dims <= 2:
        return (
            f"rope-scaling-type dynamic needs at least 4 dims that rotate, not {dims} (kv-channels {kv_channels} x "
            f"rotary-percent {rotary_percent:g}): use linear"
        )
    original = rope_original_max_position_embeddings
    if rope_scaling_type == "longrope" and original == 1 and rope_attention_factor is None:
        return Broken(
            "rope-original-max-position-embeddings (1) must be at least 2 with rope-scaling-type longrope",
            [Remedy("rope_original_max_position_embeddings", [[2]], " or more")],
            "give rope-attention-factor",
        )
    return None


LAWS: list[Callable[..., str | Broken | None]] = [
    a_pattern_says_something_of_every_layer,
    rope_scaling_has_its_numbers,
    positions_are_interpolated_once,
    longrope_has_a_factor_for_each_frequency,
    the_ramp_of_frequencies_rises,
    mscales_are_two,
    scaled_frequencies_exist,
]
