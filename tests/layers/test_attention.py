"""Attention against an explicit softmax: causal, grouped queries, documents, rotary positions, dropout and cache."""

from unittest.mock import patch

import pytest
import torch

from megascratch.config.layers import AttentionSpec, RopeSpec
from megascratch.layers.attention import Attention
from megascratch.layers.kernels import attention as module
from megascratch.layers.kernels import rotary as kernel
from megascratch.layers.kernels.rotary import split_heads
from megascratch.layers.rotary import rotary_angles
from tests.support.contexts import next_tokens, plain_context
from tests.support.sublayers import site_of

S, B, HEADS, WIDTH = 9, 2, 4, 8


def attention(groups: int = HEADS, dropout: float = 0.0) -> Attention:
    spec = AttentionSpec(
        heads=HEADS,
        groups=groups,
        head_width=WIDTH,
        qkv_bias=True,
        output_bias=True,
        dropout=dropout,
        rope=None,
    )
    layer = Attention(spec, site_of(HEADS * WIDTH)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(
            parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel())
        )
    return layer


def inputs(s: int = S) -> torch.Tensor:
    return torch.randn(
        s, B, HEADS * WIDTH, generator=torch.Generator().manual_seed(s), dtype=torch.float64
    )


def by_hand(layer: Attention, x: torch.Tensor, allowed: torch.Tensor, groups: int) -> torch.Tensor:
    """Head by head: softmax(q kᵀ / √d) v; allowed [b, s, s]."""
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(
        [HEADS * WIDTH, groups * WIDTH, groups * WIDTH], -1
    )
    heads = []
    for head in range(HEADS):
        group = head // (HEADS // groups)
        q_h = q[..., head * WIDTH : (head + 1) * WIDTH].transpose(0, 1)
        k_h, v_h = (t[..., group * WIDTH : (group + 1) * WIDTH].transpose(0, 1) for t in (k, v))
        scores = q_h @ k_h.transpose(1, 2) / WIDTH**0.5
        heads.append((scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v_h).transpose(0, 1))
    return torch.cat(heads, -1) @ layer.proj.weight.T + layer.proj.bias


def causal(s: int = S) -> torch.Tensor:
    return torch.ones(B, s, s, dtype=torch.bool).tril()


SAMPLES = torch.arange(B)
STARTS = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 7, 7], [0] * 9])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9])


def allowed_in(starts: torch.Tensor | None) -> torch.Tensor:
    """[b, q, k], from the documents' numbers and not from where they begin."""
    if starts is None:
        return causal()
    return causal() & (DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :])


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("starts", [None, STARTS], ids=["causal", "documents"])
def test_attention_is_the_explicit_softmax(groups, starts):
    layer, x = attention(groups), inputs()
    found = layer(x, plain_context(S, SAMPLES, starts))
    assert torch.allclose(found, by_hand(layer, x, allowed_in(starts), groups))


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("s", [1, 2, 127, 128, 129, 256, 257])
def test_on_a_cpu_short_samples_have_the_outputs_and_gradients_of_the_fused_kernel(
    s, groups, monkeypatch
):
    monkeypatch.setattr(module, "SHORT", range(1, 400))

    def run() -> list[torch.Tensor]:
        layer, x = attention(groups), inputs(s).requires_grad_()
        out = layer(x, plain_context(s, SAMPLES))
        weights = torch.randn(
            out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype
        )
        return [out, *torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])]

    short, taken = run(), []
    monkeypatch.setattr(module, "_is_short", lambda *_: bool(taken.append(1)))
    for mine, fused in zip(short, run(), strict=True):
        assert torch.allclose(mine, fused, rtol=1e-9, atol=1e-12)
    assert taken, "the fused kernel was not asked"


def test_the_plain_steps_of_dropout_are_the_same_attention():
    """With a dropout that keeps (almost) everything."""
    layer, x = attention(2, dropout=1e-18), inputs()
    for starts in (None, STARTS):
        found = layer(x, plain_context(S, SAMPLES, starts))
        assert torch.allclose(found, by_hand(layer, x, allowed_in(starts), 2))


def test_attention_dropout_keeps_the_mean_and_stops_in_evaluation():
    layer, x = attention(dropout=0.3), inputs()
    plain = by_hand(layer, x, causal(), HEADS)
    many = torch.stack([layer(x, plain_context(S, SAMPLES + B * i)) for i in range(1000)])
    assert (many[0] - plain).abs().max() > 0.1
    assert (many.mean(0) - plain).abs().max() < 6 * (many.std(0) / 1000**0.5).max()
    assert torch.allclose(layer.eval()(x, plain_context(S, SAMPLES)), plain)


def test_a_token_sees_no_later_token():
    layer, x = attention(), inputs()
    later = x.clone()
    later[5:] += 1
    context = plain_context(S, SAMPLES)
    before, after = layer(x, context), layer(later, context)
    assert torch.equal(before[:5], after[:5]) and not torch.allclose(before[5:], after[5:])


def test_with_a_cache_tokens_may_come_one_by_one():
    layer, x = attention(2), inputs()
    cache = {0: layer.new_cache()}
    whole = layer(x, plain_context(S, SAMPLES))
    first = layer(x[:4], plain_context(4, SAMPLES, cache=cache))
    rest = [
        layer(
            x[i : i + 1],
            next_tokens(torch.zeros(B, 1), i, cache=cache),
        )
        for i in range(4, S)
    ]
    assert torch.allclose(torch.cat([first, *rest]), whole)


def turned_of(x: torch.Tensor, positions: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    """All heads of [s, b, n, d] turned, in that layout."""
    angles = rotary_angles(positions, rope, x.dtype)
    q, _, _ = split_heads(x, (x.shape[2], 0, 0), angles, rope.interleaved)
    return q.permute(2, 0, 1, 3)


def test_rotary_is_a_turn_in_the_complex_plane():
    """Dims i and i + d/2 are one complex number, turned by position x base^(-2i/d) (RoFormer, equation 13)."""
    positions = torch.tensor([[0, 1, 2, 0, 5, 1000]])
    x = torch.randn(6, 1, 3, 8, dtype=torch.float64)
    turned = turned_of(x, positions, RopeSpec(8, 10000.0))
    number = torch.complex(x[..., :4], x[..., 4:])
    angle = positions[0, :, None].double() * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = number * torch.polar(torch.ones_like(angle), angle)[:, None, None]
    assert torch.allclose(torch.complex(turned[..., :4], turned[..., 4:]), expected)


def test_rotary_turns_only_its_share_of_the_head():
    x = torch.randn(3, 1, 2, 8)
    turned = turned_of(x, torch.tensor([[1, 2, 3]]), RopeSpec(4, 100.0))
    assert torch.equal(turned[..., 4:], x[..., 4:]) and not torch.equal(turned[..., :4], x[..., :4])
    assert torch.allclose(turned[..., :4].norm(dim=-1), x[..., :4].norm(dim=-1), rtol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("formulas", [False, True])
def test_rotary_turns_queries_and_keys_alone_and_its_backward_is_the_derivative(
    interleaved, formulas
):
    """Also by the operations that a compiler sees."""
    qkv = torch.randn(3, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([[1, 2, 3], [4, 5, 6]])
    rope = RopeSpec(4, 100.0, interleaved)
    angles = rotary_angles(positions, rope, torch.float64)
    heads = (3, 1, 1)
    whole = turned_of(qkv, positions, rope).permute(1, 2, 0, 3)
    with patch.object(kernel, "only_formulas", lambda: formulas):
        q, k, v = split_heads(qkv, heads, angles, interleaved)
        assert torch.allclose(q, whole[:, :3], rtol=1e-14)
        assert torch.allclose(k, whole[:, 3:4], rtol=1e-14)
        assert torch.equal(v, qkv.permute(1, 2, 0, 3)[:, 4:])
        assert torch.autograd.gradcheck(
            lambda x: split_heads(x, heads, angles, interleaved), (qkv,)
        )


def test_interleaved_rotary_turns_neighbouring_dims():
    """Dims 2i and 2i + 1 are one complex number (RoFormer, equation 15); a factor of 4 makes position 8 position 2."""
    positions = torch.tensor([[0, 8, 400]])
    x = torch.randn(3, 1, 2, 10, dtype=torch.float64)
    turned = turned_of(x, positions, RopeSpec(8, 10000.0, True, 4.0))
    angle = torch.tensor([0.0, 2.0, 100.0]).double()[:, None] * 10000.0 ** (
        -torch.arange(4, dtype=torch.float64) / 4
    )
    number = torch.view_as_complex(x[..., :8].reshape(3, 1, 2, 4, 2))
    expected = number * torch.polar(torch.ones_like(angle), angle)[:, None, None]
    assert torch.allclose(turned[..., :8], torch.view_as_real(expected).flatten(-2))
    assert torch.equal(turned[..., 8:], x[..., 8:])


def test_rotary_angles_far_out_are_exact_in_fp32():
    """A position times a frequency is taken in fp64: in fp32 its fraction would be lost."""
    cos, _ = rotary_angles(torch.tensor([[10**7 + 1]]), RopeSpec(2, 10000.0), torch.float32)
    expected = torch.tensor(10.0**7 + 1, dtype=torch.float64).cos().item()
    assert cos[0, 0, 0, 0].item() == pytest.approx(expected, abs=1e-6)
