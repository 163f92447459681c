"""The same small model here and in transformers: one of `transformers_families.py`, with weights from here under the
names there."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import validate
from megascratch.config.resolve import ResolvedConfig, resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import collate
from megascratch.model.build import build_chunks
from megascratch.model.chunk import ModelChunk, context_of
from megascratch.parallel.mesh import Mesh
from tests.support.transformers_families import COMMON, COMMON_THERE, FAMILIES, LLAMA


def config_of(name: str) -> ResolvedConfig:
    config = with_fields(Config(), {**COMMON, **FAMILIES[name].settings})
    validate(flat(config), 1)
    return resolve(config, 1)


def model_here(name: str, dtype: torch.dtype) -> ModelChunk:
    """With random weights in all parts, norms included."""
    config = config_of(name)
    (chunk,) = build_chunks(config.model, config.parallel, Mesh.alone(), torch.float64, 5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in chunk.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(0.1 * noise)
    return chunk.to(dtype).eval()


def model_there(name: str, here: ModelChunk) -> torch.nn.Module:
    """The model of transformers with the weights of `here`."""
    transformers = pytest.importorskip("transformers")
    family = FAMILIES[name]
    make_config = _class_of(transformers, family.model, "TextConfig", "Config")
    settings = {"num_hidden_layers": 4, **COMMON_THERE, **family.config}
    config = make_config(**settings, attn_implementation="eager")
    model = _class_of(transformers, family.model, "ForCausalLM")(config)
    dtype = next(here.parameters()).dtype
    weights = under_their_names(name, here, dict(here.named_parameters()))
    model = model.to(dtype).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    unused = ("lm_head.weight", "mlp.router.weight", "mlp.router.bias")  # tied, or of one expert
    assert unexpected == [] and all(name.endswith(unused) for name in missing)
    model.tie_weights()
    return model


def _class_of(transformers: Any, family: str, *endings: str) -> Any:
    for ending in endings:
        if hasattr(transformers, family + ending):
            return getattr(transformers, family + ending)
    raise LookupError(f"transformers has no {family} with {endings}")


def under_their_names(
    name: str, here: ModelChunk, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights, or their gradients, by the names of transformers."""
    family = FAMILIES[name]
    names = {**LLAMA, **family.names}
    model = here.model
    q = model.num_attention_heads * model.kv_channels
    kv = model.num_query_groups * model.kv_channels
    parts = {
        "attention.qkv": {"q": q, "k": kv, "v": kv},
        "mlp.fc1": {"gate": model.ffn_hidden_size, "up": model.ffn_hidden_size},
    }
    if model.attention_output_gate:
        parts["attention.qkv"]["output_gate"] = q
        names["output_gate"] = "self_attn.output_gate"
    found: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        before = ""
        if full_name.startswith("layers."):
            _, layer, full_name = full_name.split(".", 2)
            before = f"{names['layers']}.{layer}."
        if full_name in names:  # a part that is a weight itself
            found[before + names[full_name]] = tensor
            continue
        part, _, kind = full_name.rpartition(".")
        if part in names:
            found[f"{before}{names[part]}.{kind}"] = tensor
            continue
        sizes = parts[part]
        for each, rows in zip(sizes, tensor.split(list(sizes.values())), strict=True):
            found[f"{before}{names[each]}.{kind}"] = rows
    return found if family.change is None else family.change(found, model)


def logits_here(name: str, model: ModelChunk, ids: Tensor) -> Tensor:
    """[b, s, v] of ids [b, s]."""
    rows = [torch.tensor([*row, 0]).numpy() for row in ids.tolist()]
    batch = collate(rows, range(len(rows)), ids.shape[1], None)
    hidden = model.hidden(None, batch.ids, context_of(batch))  # [s, b, h]
    return model.head.logits(hidden).view(ids.shape[1], len(rows), -1).transpose(0, 1)


class _Fp64:
    """torch for modules of transformers that compute in fp32 by name."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def without_casts_to_fp32(name: str) -> Iterator[None]:
    """Where transformers computes in fp32 whatever the dtype of a model, it computes in fp64: norms, angles, softmax,
    products of whole and real numbers, and constants of the model if it is built here."""
    transformers = pytest.importorskip("transformers")
    model = _class_of(transformers, FAMILIES[name].model, "ForCausalLM")
    module = importlib.import_module(model.__module__)
    ropes = pytest.importorskip("transformers.modeling_rope_utils")
    with ExitStack() as stack:
        for one in (module, ropes):
            stack.enter_context(patch.object(one, "torch", _Fp64()))
        stack.enter_context(patch.object(torch.Tensor, "float", torch.Tensor.double))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        yield
