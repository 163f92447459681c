"""Ropes of every kind with the frequencies and attention factors that transformers 5.24 gives for them, with its
arithmetic in fp64; and laws of them."""

import math
from dataclasses import replace

import pytest
import torch

from megascratch.config.layers import RopeScaling, RopeSpec
from megascratch.layers import rope_kinds, rotary

SHORT, LONG = (1.0, 1.1, 1.25, 1.5), (1.0, 2.0, 5.0, 9.5)
PLAIN = RopeSpec(8, 10000.0)
KINDS = {
    "llama3": replace(PLAIN, base=5e5, scaling=RopeScaling("llama3", 8.0, 512)),
    "dynamic": replace(PLAIN, scaling=RopeScaling("dynamic", 4.0, 64)),
    "yarn": replace(PLAIN, base=1e6, scaling=RopeScaling("yarn", 4.0, 4096)),
    "yarn of gpt-oss": replace(
        PLAIN, base=150000.0, scaling=RopeScaling("yarn", 32.0, 4096, truncate=False)
    ),
    "yarn of DeepSeek": replace(
        PLAIN, scaling=RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=0.7)
    ),
    "yarn with a factor given": replace(
        PLAIN, scaling=RopeScaling("yarn", 4.0, 32, attention_factor=1.5)
    ),
    "longrope": replace(
        PLAIN,
        scaling=RopeScaling("longrope", 4.0, 64, short_factors=SHORT, long_factors=LONG),
    ),
}
PINNED: dict[tuple[str, int], tuple[list[float], float]] = {
    ("llama3", 64): (
        [1.0, 0.0273441373147213, 0.00017677669529663688, 6.647869871181236e-06],
        1.0,
    ),
    ("dynamic", 64): (
        [1.0, 0.1, 0.01, 0.001],
        1.0,
    ),
    ("dynamic", 65): (
        [1.0, 0.09799946100592892, 0.009603894357452585, 0.0009411764705882353],
        1.0,
    ),
    ("yarn", 64): (
        [1.0, 0.019764235376052368, 0.00025, 7.905694150420949e-06],
        1.138629436111989,
    ),
    ("yarn of gpt-oss", 64): (
        [1.0, 0.050813274815461475, 0.00045648391922324086, 4.0999784818029795e-06],
        1.3465735902799727,
    ),
    ("yarn of DeepSeek", 64): (
        [1.0, 0.1, 0.005125, 2.5e-05],
        1.0879546075066122,
    ),
    ("yarn with a factor given", 64): (
        [1.0, 0.025, 0.0025, 0.00025],
        1.5,
    ),
    ("longrope", 64): (
        [1.0, 0.09090909090909091, 0.008, 0.0006666666666666666],
        1.1547005383792517,
    ),
    ("longrope", 65): (
        [1.0, 0.05, 0.002, 0.00010526315789473685],
        1.1547005383792517,
    ),
}


def found(rope: RopeSpec, length: int) -> torch.Tensor:
    """The frequencies in a sample of that length."""
    even_dims = torch.arange(0, rope.dims, 2, dtype=torch.float64)
    return rope_kinds.frequencies(rope, [length], even_dims)


def frequencies_are_those_of_transformers(name: str, length: int) -> None:
    expected, factor = PINNED[name, length]
    assert found(KINDS[name], length).tolist() == pytest.approx(expected, rel=1e-12)
    assert rope_kinds.attention_factor(KINDS[name]) == pytest.approx(factor, rel=1e-12)


def the_attention_factor_is_in_cosine_and_sine() -> None:
    """So that a product of a query and a key grows by its square."""
    cos, sin = rotary.rotary_angles(torch.arange(3)[None], KINDS["yarn"], torch.float64)
    factor = 0.1 * math.log(4) + 1
    length = cos[..., :4].square() + sin.square()
    assert torch.allclose(length, torch.full_like(length, factor**2), rtol=1e-12)
