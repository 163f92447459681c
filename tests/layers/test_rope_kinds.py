"""Rotary frequencies of longer samples: against transformers, against values from it, and what they depend on."""

import random
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megascratch.config.layers import RopeScaling, RopeSpec
from megascratch.layers.kernels.rotary import split_heads
from megascratch.layers.rope_kinds import SCALED, attention_factor, length_class
from megascratch.layers.rotary import rotary_angles
from tests.support.rope_kinds import (
    KINDS,
    PINNED,
    PLAIN,
    found,
    frequencies_are_those_of_transformers,
    the_attention_factor_is_in_cosine_and_sine,
)


@pytest.mark.parametrize(("name", "length"), PINNED)
def test_frequencies_and_the_factor_are_those_of_transformers(name, length):
    frequencies_are_those_of_transformers(name, length)


def test_scores_grow_by_the_square_of_the_attention_factor():
    the_attention_factor_is_in_cosine_and_sine()


class Fp64:
    """torch for a module that computes in fp32 by name."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def of_transformers(
    rope: RopeSpec, width: int, length: int, seq_length: int
) -> tuple[torch.Tensor, float]:
    """Inverse frequencies and attention factor as transformers computes them, in fp64."""
    transformers = pytest.importorskip("transformers")
    module = pytest.importorskip("transformers.modeling_rope_utils")
    scaling = rope.scaling
    config = transformers.LlamaConfig(
        hidden_size=2 * width, num_attention_heads=2, head_dim=width, max_position_embeddings=64
    )
    parameters: dict[str, Any] = {
        "rope_theta": rope.base,
        "partial_rotary_factor": rope.dims / width,
        "factor": rope.interpolation,
        "rope_type": "linear",
    }
    if scaling is not None:
        parameters |= {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_length,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "mscale": scaling.mscale,
            "mscale_all_dim": scaling.mscale_all_dim,
            "attention_factor": scaling.attention_factor,
            "truncate": scaling.truncate,
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
        }
    config.max_position_embeddings = seq_length
    if scaling is not None and scaling.kind == "dynamic":
        config.max_position_embeddings = scaling.original_length
    config.rope_parameters = parameters
    in_fp64 = patch.object(torch.Tensor, "float", torch.Tensor.double)
    with patch.object(module, "torch", Fp64()), in_fp64:
        return module.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", length)


def drawn(stream: random.Random, kind: str) -> tuple[RopeSpec, int]:
    """A rope of the kind and the width of its head."""
    dims = 2 * stream.randint(2, 32)
    width = dims * stream.choice((1, 2))
    base = stream.choice((100.0, 1e4, 5e5, 1e7))
    if kind == "linear":
        return RopeSpec(dims, base, interpolation=stream.uniform(1, 16)), width
    given = {"mscale": stream.uniform(0.2, 2), "mscale_all_dim": stream.uniform(0.2, 2)}
    scaling = RopeScaling(
        kind,
        stream.choice((0.5, 1.0, 2.5, 8.0, 40.0)),
        stream.choice((16, 100, 4096, 32768)),
        low_freq_factor=stream.uniform(0.5, 2),
        high_freq_factor=stream.uniform(2.5, 8),
        beta_fast=stream.uniform(8, 64),
        beta_slow=stream.uniform(0.5, 4),
        attention_factor=stream.choice((None, None, 1.3)),
        truncate=stream.random() < 0.5,
        short_factors=tuple(stream.uniform(0.5, 2) for _ in range(dims // 2)),
        long_factors=tuple(stream.uniform(1, 60) for _ in range(dims // 2)),
        **stream.choice(({}, given)),
    )
    return RopeSpec(dims, base, scaling=scaling), width


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["linear", *SCALED])
def test_every_kind_is_that_of_transformers(kind):
    """200 drawn ropes of each kind, on both sides of the original length."""
    stream = random.Random(kind)
    for _ in range(200):
        rope, width = drawn(stream, kind)
        length = stream.choice((1, 16, 17, 4096, 4097, 60000))
        expected, factor = of_transformers(rope, width, length, 64)
        assert expected.dtype == torch.float64
        ours = found(rope, length) / rope.interpolation
        assert torch.allclose(ours, expected, rtol=1e-12, atol=0), rope
        assert attention_factor(rope) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_turns_pairs_of_a_part_of_a_head_and_scales_it(kind, interleaved):
    """As complex numbers: (a + bi) e^(i angle) times the factor, and the other dims stay."""
    rope = replace(KINDS[kind], interleaved=interleaved)
    qkv = torch.randn(70, 2, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positions = torch.stack((torch.arange(70), torch.arange(70) + 3))
    q, _, _ = split_heads(
        qkv, (1, 1, 1), rotary_angles(positions, rope, qkv.dtype, [70]), interleaved
    )
    x = qkv[:, :, 0].transpose(0, 1)  # [b, s, d]
    pairs = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(0, 4), slice(4, 8))
    angle = positions[..., None] * found(rope, 70)
    turned = torch.complex(x[..., pairs[0]], x[..., pairs[1]]) * torch.polar(
        torch.full_like(angle, attention_factor(rope)), angle
    )
    assert torch.allclose(q[:, 0, :, pairs[0]], turned.real, atol=1e-12)
    assert torch.allclose(q[:, 0, :, pairs[1]], turned.imag, atol=1e-12)
    assert torch.equal(q[:, 0, :, 8:], x[..., 8:])


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_change_with_the_length_where_its_class_does(kind):
    rope = KINDS[kind]
    depends = kind in ("dynamic", "longrope")
    for length in (1, 63, 64, 65, 66, 1000):
        changed = not torch.equal(found(rope, length), found(rope, length + 1))
        differs = length_class(rope, length) != length_class(rope, length + 1)
        assert changed == differs
        assert depends or not changed
    assert torch.equal(found(KINDS["dynamic"], 64), found(PLAIN, 64))
    assert not torch.equal(found(KINDS["dynamic"], 65), found(KINDS["dynamic"], 66))


def test_samples_of_different_lengths_have_the_angles_that_each_has_alone():
    rope = KINDS["dynamic"]
    positions = torch.arange(5).expand(3, 5)
    lengths = [70, 5, 90]
    together = rotary_angles(positions, rope, torch.float64, lengths)
    for row, length in enumerate(lengths):
        alone = rotary_angles(positions[:1], rope, torch.float64, [length])
        for all_rows, one in zip(together, alone, strict=True):
            assert torch.equal(all_rows[:, row : row + 1], one)
