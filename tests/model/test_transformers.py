"""Models of published families against transformers' own implementation: logits, gradients, and greedy generation."""

import pytest
import torch

from megascratch.inference.generate import generate
from megascratch.inference.sampling import Sampling
from tests.support.transformers_model import (
    BATCH,
    FAMILIES,
    SEQUENCE,
    config_of,
    logits_here,
    model_here,
    model_there,
    under_their_names,
    without_casts_to_fp32,
)

IDS = torch.randint(0, 61, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(2))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference beside the largest number."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.deep
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_in_fp32_are_those_of_transformers(name):
    here = model_here(name, torch.float32)
    there = model_there(name, here)
    with torch.no_grad():
        assert difference(logits_here(name, here, IDS), there(IDS).logits) < 1e-5


@pytest.mark.deep
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_gradients_in_fp64_are_those_of_transformers(name):
    here = model_here(name, torch.float64)
    generator = torch.Generator().manual_seed(3)
    upstream = torch.randn(BATCH, SEQUENCE, 61, generator=generator, dtype=torch.float64)
    with without_casts_to_fp32(name):
        there = model_there(name, here)
        expected = there(IDS).logits
        (expected * upstream).sum().backward()
    found = logits_here(name, here, IDS)
    (found * upstream).sum().backward()
    assert difference(found, expected) < 1e-11
    grads = under_their_names(
        name, here, {name: weight.grad for name, weight in here.named_parameters()}
    )
    others = dict(there.named_parameters())
    if config_of(name).model.untie_embeddings_and_output_weights:
        assert grads.keys() == others.keys()
    for weight, grad in grads.items():
        assert difference(grad, others[weight].grad) < 1e-9, weight


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
