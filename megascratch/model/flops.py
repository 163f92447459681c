"""Counts parameters and floating-point operations from the settings."""

from megascratch.config.settings import ModelConfig


def layer_parameters(model: ModelConfig) -> int:
    """The number of weights in the matrices of one block."""
    hidden = model.hidden_size
    assert model.kv_channels is not None
    assert model.num_query_groups is not None
    assert model.ffn_hidden_size is not None
    q_and_output = 2 * hidden * model.num_attention_heads * model.kv_channels
    k_and_v = 2 * hidden * model.num_query_groups * model.kv_channels
    mlp_matrices = 3 if model.swiglu else 2
    mlp = mlp_matrices * hidden * model.ffn_hidden_size
    return q_and_output + k_and_v + mlp


def flops_per_token(model: ModelConfig, seq_length: int) -> float:
    """FLOPs of forward and backward per token: 6 per weight of every matrix product (with the output matrix, without
    the embedding look-up) and 12 x layers x width x sequence for attention, counted in full although it is causal
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Recomputation and padding are not counted."""
    assert model.kv_channels is not None
    assert model.vocab_size is not None
    blocks = model.num_layers * layer_parameters(model)
    head = model.vocab_size * model.hidden_size
    width = model.num_attention_heads * model.kv_channels
    attention = model.num_layers * width * seq_length
    return 6 * (blocks + head) + 12 * attention
