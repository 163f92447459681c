"""Gated DeltaNet against transformers' own, and generation against the whole text at once."""

import pytest
import torch

from megascratch.config.layers import GatedDeltaNetSpec
from megascratch.layers.gated_delta_net import GatedDeltaNet
from tests.support.contexts import next_tokens, plain_context
from tests.support.sublayers import site_of

H, S, B = 12, 70, 2
SPEC = GatedDeltaNetSpec(
    key_heads=2, value_heads=4, key_width=4, value_width=6, kernel=4, epsilon=1e-6
)


def layer_of(seed: int = 1) -> GatedDeltaNet:
    torch.manual_seed(seed)
    layer = GatedDeltaNet(SPEC, site_of(H)).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return layer


def hidden(s: int = S) -> torch.Tensor:
    return torch.randn(s, B, H, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("steps", [[70], [1] * 20 + [50], [65, 1, 1, 3]])
def test_generation_is_the_whole_text_at_once(steps):
    layer = layer_of().eval()
    x = hidden()
    whole = layer(x, plain_context(S, torch.arange(B)))
    cache = {layer.layer: layer.new_cache()}
    first = 0
    rows = []
    for step in steps:
        ids = torch.zeros(B, step, dtype=torch.int64)
        rows.append(layer(x[first : first + step], next_tokens(ids, first, cache=cache)))
        first += step
    assert torch.allclose(torch.cat(rows), whole, rtol=1e-10, atol=1e-12)


def test_documents_are_alone():
    layer = layer_of()
    x = hidden()
    starts = torch.zeros(B, S, dtype=torch.int64)
    starts[:, 30:] = 30
    packed = layer(x, plain_context(S, torch.arange(B), starts))
    alone = layer(x[30:], plain_context(S - 30, torch.arange(B)))
    assert torch.allclose(packed[30:], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.deep
def test_it_is_transformers_layer():
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config = modeling.Qwen3NextConfig(
        hidden_size=H,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=4,
        linear_value_head_dim=6,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    theirs = modeling.Qwen3NextGatedDeltaNet(config, 0)
    ours = layer_of().float()
    copy_weights(ours, theirs)
    x = hidden().float()
    found = ours(x, plain_context(S, torch.arange(B)))
    expected = theirs(x.transpose(0, 1)).transpose(0, 1)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def copy_weights(ours: GatedDeltaNet, theirs: torch.nn.Module) -> None:
    """Theirs has the rows of each key head together: q, k, and the v and z of its value heads."""
    q, k, v, z, b, a = ours.inputs.weight.split((8, 8, 24, 24, 4, 4))
    rows, numbers = [], []
    for head in range(2):
        rows += [q[4 * head :][:4], k[4 * head :][:4], v[12 * head :][:12], z[12 * head :][:12]]
        numbers += [b[2 * head :][:2], a[2 * head :][:2]]
    theirs.in_proj_qkvz.weight.copy_(torch.cat(rows))
    theirs.in_proj_ba.weight.copy_(torch.cat(numbers))
    theirs.conv1d.weight.copy_(ours.convolution[:, None])
    theirs.A_log.copy_(ours.log_decay)
    theirs.dt_bias.copy_(ours.step_bias)
    theirs.norm.weight.copy_(ours.norm)
    theirs.out_proj.weight.copy_(ours.proj.weight)
