"""Settings that break one law each of rotary positions or of patterns of layers, with a part of the complaint."""

from typing import Any

ROPE: dict[str, Any] = {"position_embedding_type": "rope", "num_layers": 4, "kv_channels": 8}
YARN = {
    **ROPE,
    "rope_scaling_type": "yarn",
    "rope_scaling_factor": 4.0,
    "rope_original_max_position_embeddings": 256,
}
LONGROPE = {
    **ROPE,
    "rope_scaling_type": "longrope",
    "rope_original_max_position_embeddings": 256,
    "rope_short_factors": [1.0, 1.1, 1.2, 1.3],
    "rope_long_factors": [1.0, 2.0, 4.0, 8.0],
}
WINDOW: dict[str, Any] = {"num_layers": 4, "sliding_window": 8}

BROKEN_PATTERN_LAWS = [
    (
        "a_pattern_says_something_of_every_layer",
        1,
        {**WINDOW, "window_attn_skip_freq": [1, 1, 0]},
        "window-attn-skip-freq (1 1 0) has 3 numbers, and num-layers is 4: it must have one for each layer: use "
        "window-attn-skip-freq 1 1 0 1, num-layers 3, or give one number",
    ),
    (
        "a_pattern_says_something_of_every_layer",
        1,
        {**WINDOW, "window_attn_skip_freq": [1, 2, 0, 0]},
        "window-attn-skip-freq (1 2 0 0) must be one number, or one 0 or 1 for each of 4 layers",
    ),
    (
        "a_pattern_says_something_of_every_layer",
        1,
        {**ROPE, "no_rope_freq": [0]},
        "no-rope-freq (0) must be at least 1: with N it picks every Nth layer: use no-rope-freq 1 or more",
    ),
    (
        "a_pattern_says_something_of_every_layer",
        1,
        {**ROPE, "no_rope_freq": []},
        "no-rope-freq is an empty list: give one number, or 4 of 0 or 1, or remove it",
    ),
    (
        "rope_scaling_has_its_numbers",
        1,
        {**YARN, "rope_original_max_position_embeddings": None},
        "rope-scaling-type yarn needs rope-original-max-position-embeddings: give a number",
    ),
    (
        "rope_scaling_has_its_numbers",
        1,
        {**YARN, "rope_scaling_type": "dynamic", "rope_scaling_factor": None},
        "rope-scaling-type dynamic needs rope-scaling-factor: give a number",
    ),
    (
        "rope_scaling_has_its_numbers",
        1,
        {**ROPE, "rope_scaling_type": "llama3"},
        "llama3 needs rope-original-max-position-embeddings and rope-scaling-factor: give a number",
    ),
    (
        "rope_scaling_has_its_numbers",
        1,
        {**ROPE, "rope_scaling_type": "linear"},
        "rope-scaling-type linear needs rope-scaling-factor: give a number",
    ),
    (
        "positions_are_interpolated_once",
        1,
        {
            **ROPE,
            "rope_scaling_type": "linear",
            "rope_scaling_factor": 4.0,
            "rotary_seq_len_interpolation_factor": 2.0,
        },
        "rope-scaling-type linear and rotary-seq-len-interpolation-factor (2) cannot be combined, since both stretch "
        "positions: remove one",
    ),
    (
        "longrope_has_a_factor_for_each_frequency",
        1,
        {**LONGROPE, "rope_long_factors": [1.0, 2.0]},
        "rope-long-factors has 2 numbers, and longrope needs one for every two dims that rotate (kv-channels 8 x "
        "rotary-percent 1 / 2): give 4",
    ),
    (
        "longrope_has_a_factor_for_each_frequency",
        1,
        {**LONGROPE, "rope_short_factors": None},
        "rope-short-factors has 0 numbers, and longrope needs one for every two",
    ),
    (
        "longrope_has_a_factor_for_each_frequency",
        1,
        {**LONGROPE, "rope_short_factors": [1.0, 0.0, 1.0, 1.0]},
        "rope-short-factors has 0: a frequency is divided by a number above 0",
    ),
    (
        "the_ramp_of_frequencies_rises",
        1,
        {**YARN, "rope_scaling_type": "llama3", "rope_low_freq_factor": 4.0},
        "rope-low-freq-factor (4) must be below rope-high-freq-factor (4): use rope-high-freq-factor 16.0",
    ),
    (
        "the_ramp_of_frequencies_rises",
        1,
        {**YARN, "rope_beta_slow": 33.0},
        "rope-beta-slow (33) must be at most rope-beta-fast (32): use rope-beta-fast 1056.0",
    ),
    (
        "mscales_are_two",
        1,
        {**YARN, "rope_mscale": 0.7},
        "rope-mscale and rope-mscale-all-dim go together: give rope-mscale-all-dim, or remove both",
    ),
    (
        "mscales_are_two",
        1,
        {**YARN, "rope_mscale": 0.7, "rope_mscale_all_dim": 1.0, "rope_attention_factor": 1.2},
        "rope-attention-factor (1.2) is what rope-mscale and rope-mscale-all-dim would give: remove it, or both",
    ),
    (
        "scaled_frequencies_exist",
        1,
        {**YARN, "rotary_base": 1.0},
        "rotary-base (1) must be above 1 with rope-scaling-type yarn: use rotary-base 10000.0",
    ),
    (
        "scaled_frequencies_exist",
        1,
        {**YARN, "rope_scaling_type": "dynamic", "kv_channels": 2},
        "rope-scaling-type dynamic needs at least 4 dims that rotate, not 2 (kv-channels 2 x rotary-percent 1): use "
        "linear",
    ),
    (
        "scaled_frequencies_exist",
        1,
        {**LONGROPE, "rope_original_max_position_embeddings": 1},
        "rope-original-max-position-embeddings (1) must be at least 2 with rope-scaling-type longrope: use "
        "rope-original-max-position-embeddings 2 or more, or give rope-attention-factor",
    ),
]

LEGAL = [
    YARN,
    LONGROPE,
    {**YARN, "rope_scaling_type": "llama3"},
    {**YARN, "rope_scaling_type": "dynamic", "rotary_percent": 0.5},
    {**YARN, "rope_mscale": 0.7, "rope_mscale_all_dim": 1.0, "rope_truncate": False},
    {**ROPE, "rope_scaling_type": "linear", "rope_scaling_factor": 4.0, "no_rope_freq": [4]},
    {**ROPE, **WINDOW, "window_attn_skip_freq": [1, 1, 1, 0], "rotary_base_windowed": 100.0},
    {**WINDOW, "window_attn_skip_freq": [6]},
]
NO_EFFECT = [
    ({"num_layers": 4, "window_attn_skip_freq": [2]}, "without sliding-window"),
    ({**ROPE, "rotary_base_windowed": 9.0}, "rotary-base-windowed has no effect without sliding-w"),
    ({"no_rope_freq": [2]}, "no-rope-freq has no effect without position-embedding-type rope"),
    ({**ROPE, "rope_scaling_factor": 2.0}, "has no effect without rope-scaling-type"),
    ({**YARN, "rope_low_freq_factor": 2.0}, "has no effect without rope-scaling-type llama3"),
    (
        {**YARN, "rope_scaling_type": "llama3", "rope_attention_factor": 1.5},
        "rope-attention-factor has no effect without rope-scaling-type yarn or longrope",
    ),
]
