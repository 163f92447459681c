"""Counts parameters and floating-point operations from the settings."""

from megascratch.config.settings import ModelConfig


def layer_parameters(model: ModelConfig) -> int:
    """The number of weights in the matrices of one block."""
    assert model.kv_channels is not None and model.num_query_groups is not None and model.ffn_hidden_size is not None
    attention = model.hidden_size * model.kv_channels * 2 * (model.num_attention_heads + model.num_query_groups)
    return attention + model.hidden_size * model.ffn_hidden_size * (3 if model.swiglu else 2)


def flops_per_token(model: ModelConfig, seq_length: int) -> float:
    """FLOPs of forward and backward per token: 6 per weight of every matrix product (with the output matrix, without
    the embedding look-up) and 12 x layers x width x sequence for attention, counted in full although it is causal
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Recomputation and padding are not counted."""
    assert model.kv_channels is not None and model.vocab_size is not None
    matrices = model.num_layers * layer_parameters(model) + model.vocab_size * model.hidden_size
    attention = model.num_layers * model.num_attention_heads * model.kv_channels * seq_length
    return 6 * matrices + 12 * attention
