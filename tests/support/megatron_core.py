"""megatron-core on a CPU, for tests that compare with it. It is imported where it is used: it may be absent."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tests.support.megatron_model import VOCABULARY


class _OnTheCpu(TorchFunctionMode):
    """Makes on the CPU what is asked for on a GPU by name, and says of its tensors that they are on a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        named = dict(kwargs or {})
        if named.get("device") == "cuda":
            named["device"] = "cpu"
        found = func(*args, **named)
        if func is torch.Tensor.type and isinstance(found, str):
            return found.replace("torch.", "torch.cuda.")
        return found


@pytest.fixture
def core(monkeypatch) -> Iterator[None]:
    """megatron-core with groups of one process; what it allocates on the current GPU is on the CPU."""
    pytest.importorskip("megatron.core")
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    parallel_state.initialize_model_parallel()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    # there is no dropout, and its generators need a GPU
    monkeypatch.setattr(random.CudaRNGStatesTracker, "fork", lambda self, *name: nullcontext())
    with _OnTheCpu():
        yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def gpt_model(seq_length: int, core: Mapping[str, Any]) -> torch.nn.Module:
    """Megatron-LM's model of local layers. `core`: arguments that differ from those here, as `SameModel` has them."""
    from megatron.core.activations import quick_gelu, squared_relu
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    given = dict(core)
    activation = given.pop("activation", "gelu")
    outside = {}
    for name in (
        "position_embedding_type",
        "rotary_percent",
        "rotary_base",
        "seq_len_interpolation_factor",
        "rope_scaling",
    ):
        if name in given:
            outside[name] = given.pop(name)
    vocabulary = given.pop("vocab_size", VOCABULARY)
    tied = given.pop("share_embeddings_and_output_weights", True)
    transformer = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        activation_func={
            "gelu": F.gelu,
            "squared_relu": squared_relu,
            "swiglu": F.silu,
            "quick_geglu": quick_gelu,
        }[activation],
        gated_linear_unit=activation in ("swiglu", "quick_geglu"),
        **given,
    )
    return GPTModel(
        transformer,
        get_gpt_layer_local_spec(
            normalization=transformer.normalization, qk_layernorm=transformer.qk_layernorm
        ),
        vocab_size=vocabulary,
        max_sequence_length=seq_length,
        share_embeddings_and_output_weights=tied,
        **outside,
    )
