"""A shrunk config is of the user's kind: the same ranks can share it, in the same way."""

import pytest

from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import validate
from megascratch.config.resolve import padded_vocab_size, resolve
from megascratch.config.settings import Config
from megascratch.verification.shrink import for_proof, shrunk

RANKS = 8
MODELS = {
    "gpt2": {"vocab_size": 50257},
    "llama 8b": {
        "num_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "ffn_hidden_size": 14336,
        "vocab_size": 128256,
        "swiglu": True,
        "position_embedding_type": "rope",
        "seq_length": 8192,
    },
    "llama 70b": {
        "num_layers": 80,
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_query_groups": 8,
        "ffn_hidden_size": 28672,
        "vocab_size": 32000,
        "seq_length": 4096,
    },
    "falcon 7b": {
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "num_query_groups": 1,
        "vocab_size": 65024,
    },
    "wide heads": {
        "hidden_size": 3072,
        "num_attention_heads": 16,
        "kv_channels": 256,
        "vocab_size": 256000,
    },
    "qwen": {
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_query_groups": 2,
        "ffn_hidden_size": 4864,
        "vocab_size": 151936,
        "add_qkv_bias": True,
    },
    "partly rotary": {
        "position_embedding_type": "rope",
        "rotary_percent": 0.25,
        "vocab_size": 50304,
    },
    "tiny": {
        "num_layers": 1,
        "hidden_size": 6,
        "num_attention_heads": 1,
        "vocab_size": 7,
        "seq_length": 5,
    },
    "windows and a stretched rope": {
        "num_layers": 26,
        "hidden_size": 1152,
        "num_attention_heads": 4,
        "num_query_groups": 1,
        "kv_channels": 256,
        "vocab_size": 262144,
        "seq_length": 8192,
        "position_embedding_type": "rope",
        "sliding_window": 512,
        "window_attn_skip_freq": [6],
        "rope_scaling_type": "longrope",
        "rope_original_max_position_embeddings": 4096,
        "rope_scaling_factor": 4.0,
        "rope_short_factors": [1 + i / 128 for i in range(128)],
        "rope_long_factors": [1 + i / 8 for i in range(128)],
    },
    "a window as long as the sample": {
        "vocab_size": 100,
        "sliding_window": 4096,
        "seq_length": 4096,
    },
    "positions beyond the sequence": {
        "max_position_embeddings": 4096,
        "seq_length": 512,
        "vocab_size": 100,
    },
}


def legal(config: Config, tp: int, **more) -> bool:
    config = with_fields(config, {"tensor_model_parallel_size": tp, "global_batch_size": 1, **more})
    try:
        validate(flat(config), tp)
    except ValueError:
        return False
    return True


@pytest.fixture(params=MODELS)
def pair(request):
    """(whole, small), resolved."""
    whole = for_proof(flat(Config()) | MODELS[request.param], 5, "fp64")
    small = shrunk(whole, RANKS)
    return resolve(with_fields(Config(), whole), 1), resolve(with_fields(Config(), small), 1)


def test_what_is_legal_for_the_whole_is_legal_for_the_small(pair):
    whole, small = pair
    for tp in range(1, RANKS + 1):
        for sequence_parallel in (False, True):
            if legal(whole, tp, sequence_parallel=sequence_parallel):
                assert legal(small, tp, sequence_parallel=sequence_parallel), tp


def test_heads_stay_of_their_kind_and_are_shared_alike(pair):
    (whole, small) = (config.model for config in pair)
    assert (small.num_query_groups == 1) == (whole.num_query_groups == 1)
    each_its_own = [model.num_query_groups == model.num_attention_heads for model in (whole, small)]
    assert each_its_own[0] == each_its_own[1]
    for tp in range(1, RANKS + 1):
        if legal(pair[0], tp):
            assert (tp > small.num_query_groups) == (tp > whole.num_query_groups)


def test_a_vocabulary_that_does_not_divide_still_does_not(pair):
    (whole, small) = (config.model for config in pair)
    for tp in range(1, RANKS + 1):
        if legal(pair[0], tp):
            assert (whole.vocab_size % tp == 0) == (small.vocab_size % tp == 0)
            padded = [
                model.vocab_size
                != padded_vocab_size(model.vocab_size, model.make_vocab_size_divisible_by, tp)
                for model in (whole, small)
            ]
            assert padded[0] == padded[1] or small.vocab_size == whole.vocab_size


def test_kinds_of_layers_and_rates_stay_and_sizes_fall(pair):
    whole, small = (flat(config) for config in pair)
    sizes = {
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "hidden_size",
        "ffn_hidden_size",
        "seq_length",
        "max_position_embeddings",
        "make_vocab_size_divisible_by",
        "vocab_size",
    }
    changed = {name for name, value in whole.items() if small[name] != value}
    of_lengths = {"sliding_window", "rope_original_max_position_embeddings"}
    of_frequencies = {"rope_short_factors", "rope_long_factors"}
    assert changed <= sizes | of_lengths | of_frequencies | {"init_method_std"}
    for name in of_lengths:
        if whole[name] is not None:
            assert 1 < small[name] <= small["seq_length"]
            assert (small[name] < small["seq_length"]) == (whole[name] < whole["seq_length"])
    for name in of_frequencies:
        if whole[name] is not None:
            assert len(small[name]) == small["kv_channels"] // 2
            assert small[name] == sorted(set(small[name])) and set(small[name]) <= set(whole[name])
    assert all(small[name] <= whole[name] for name in sizes)
    assert small["hidden_size"] <= max(512, whole["hidden_size"] // 8)
    ratio = (small["ffn_hidden_size"] / small["hidden_size"]) / (
        whole["ffn_hidden_size"] / whole["hidden_size"]
    )
    assert 0.7 < ratio < 1.4
    assert (whole["max_position_embeddings"] > whole["seq_length"]) == (
        small["max_position_embeddings"] > small["seq_length"]
    )


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_a_proof_needs_no_file_no_curve_and_no_ramp(precision):
    real = with_fields(
        Config(),
        {
            "data_path": ["nowhere"],
            "split": "1",
            "tokenizer_model": "nowhere",
            "rampup_batch_size": [1, 1, 10],
            "train_samples": 100,
            "lr_decay_style": "WSD",
            "lr_wsd_decay_samples": 10,
            "lr_warmup_samples": 5,
            "fp16": True,
            "loss_scale": 8.0,
            "device": "cpu",
            "distributed_backend": "nccl",
            "compile": True,
            "load": "nowhere",
            "save": "nowhere",
        },
    )
    proof = for_proof(flat(real), 3, precision)
    validate(proof, 1)
    config = with_fields(real, proof)
    kinds = {"fp64": config.optim.fp64, "bf16": config.optim.bf16, "fp16": config.optim.fp16}
    assert [name for name, on in kinds.items() if on] == [precision] * (precision != "fp32")
    assert config.model.vocab_size == 50257 and config.training.train_iters == 3


def test_illegal_settings_are_left_to_the_law_that_has_words_for_them():
    broken = flat(Config()) | {"hidden_size": -1, "vocab_size": 100}
    assert shrunk(broken, 8) == broken
