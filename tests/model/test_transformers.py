"""Models of published families against transformers' own implementation: logits, gradients, and greedy generation."""

import pytest
import torch

from megascratch.inference.generate import generate
from megascratch.inference.sampling import Sampling
from megascratch.model.chunk import ModelChunk
from tests.support.transformers_families import FAMILIES, SEQUENCE
from tests.support.transformers_model import (
    config_of,
    logits_here,
    model_here,
    model_there,
    under_their_names,
    without_casts_to_fp32,
)

BATCH = 2
IDS = torch.randint(0, 61, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(2))


UPSTREAM = torch.randn(
    BATCH, SEQUENCE, 61, generator=torch.Generator().manual_seed(3), dtype=torch.float64
)
PINNED: dict[str, tuple[float, float]] = {
    "Llama": (-139.19251868682517, 3356.427439204997),
    "Llama, linear": (-233.7423590160202, 3488.6890765597636),
    "Llama, dynamic": (-21.419594450022586, 3490.82849160059),
    "Llama 3.1": (-72.20941134937492, 3381.8960771251286),
    "Llama, YaRN": (49.33684569367531, 3526.0455318093705),
    "Llama, YaRN of DeepSeek": (95.49428663854022, 3979.538484115776),
    "Phi-3, short samples": (-67.92633331608148, 3816.5376260315115),
    "Phi-3, long samples": (-101.63016503856046, 3757.885199395718),
    "SmolLM3": (-24.187024654269926, 2563.1144765220192),
    "Qwen3": (-161.2834212098605, 1647.7298719068638),
    "Gemma 2": (167.90656697062497, 1038.1746508193605),
    "Gemma 3": (-76.78646645767978, 1000.1313380309781),
    "Qwen2": (-61.348654253464204, 3805.0526394119725),
    "Granite": (-1.4445754547875733, 33.42242115197976),
    "GLM-4": (84.71522053360617, 3320.2977573372386),
    "StarCoder2": (-74.32492390706926, 1757.2135483034235),
    "GPT-NeoX": (-65.6198140195181, 1049.1100357349924),
    "Qwen3-Next without experts": (0.9689481085979423, 6513.427246275259),
    "gpt-oss with one expert": (-147.17554693375877, 4456.067478735211),
    "OLMo 2": (49.04467230134166, 953.783157369033),
    "OLMo 3": (51.4064390601454, 1033.3508756359265),
}
"""Of transformers 5.24 in fp64: the sum of logits x UPSTREAM, and the norm of the gradient of the embedding."""
FP32 = {"Qwen3-Next without experts": 2e-4}
"""Where fp32 rounds more: with other ids transformers is up to 6e-4 from its own fp64, and so is the model here."""


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference beside the largest number."""
    return ((a - b).abs().max() / b.abs().max()).item()


def with_gradients(name: str, here: ModelChunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(logits of the model here, gradients of their sum x UPSTREAM by the names of transformers)."""
    logits = logits_here(name, here, IDS)
    (logits * UPSTREAM).sum().backward()
    grads = {name: weight.grad for name, weight in here.named_parameters()}
    return logits.detach(), under_their_names(name, here, grads)


def with_gradients_there(
    name: str, here: ModelChunk
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(logits of transformers in fp64, gradients of their sum x UPSTREAM by name)."""
    with without_casts_to_fp32(name):
        there = model_there(name, here)
        logits = there(IDS).logits
        (logits * UPSTREAM).sum().backward()
    return logits.detach(), {name: weight.grad for name, weight in there.named_parameters()}


def pinned_of(logits: torch.Tensor, grads: dict[str, torch.Tensor]) -> tuple[float, float]:
    (grad,) = [grads[name] for name in grads if "embed_tokens" in name or "embed_in" in name]
    return (logits * UPSTREAM).sum().item(), grad.norm().item()


@pytest.mark.parametrize("name", PINNED)
def test_a_model_is_what_transformers_said_of_it(name):
    here = model_here(name, torch.float64)
    assert pinned_of(*with_gradients(name, here)) == pytest.approx(PINNED[name], rel=1e-9)


@pytest.mark.deep
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_in_fp32_are_those_of_transformers(name):
    here = model_here(name, torch.float32)
    there = model_there(name, here)
    with torch.no_grad():
        assert difference(logits_here(name, here, IDS), there(IDS).logits) < FP32.get(name, 1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_gradients_in_fp64_are_those_of_transformers(name):
    here = model_here(name, torch.float64)
    expected, others = with_gradients_there(name, here)
    found, grads = with_gradients(name, here)
    assert difference(found, expected) < 1e-11
    if config_of(name).model.untie_embeddings_and_output_weights:
        assert grads.keys() == {name for name in others if ".router." not in name}
    for weight, grad in grads.items():
        assert difference(grad, others[weight]) < 1e-9, weight
    assert pinned_of(expected, others) == pytest.approx(PINNED[name], rel=1e-9)


@pytest.mark.deep
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(name):
    """From 3 tokens to 27, past windows and the lengths at which frequencies change. transformers keeps the keys that
    were turned by earlier frequencies of a dynamic rope, so it has no cache here."""
    config = config_of(name)
    here = model_here(name, torch.float64).requires_grad_(False)
    prompt = [5, 17, 30]
    (found,) = generate(here, config.data, [prompt], 24, Sampling(temperature=0), None)
    with without_casts_to_fp32(name):
        there = model_there(name, here)
        ids = torch.tensor([prompt])
        for _ in range(24):
            newest = there(ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat((ids, newest[:, None]), 1)
    assert found.tokens == ids[0, 3:].tolist()
