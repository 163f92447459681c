"""Embeddings, norms, MLPs and dropout against plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from megascratch.config.laws.parts import a_norm_can_store_its_weight_minus_one
from megascratch.config.layers import MLPSpec, NormSpec
from megascratch.config.registry import register
from megascratch.config.resolve import padded_vocab_size
from megascratch.layers.dropout import AttentionDropout, Dropout
from megascratch.layers.embedding import (
    PositionEmbedding,
    VocabParallelEmbedding,
    vocab_shard,
)
from megascratch.layers.mlp import ACTIVATIONS, MLP
from megascratch.layers.norm import NORMS, build_norm
from megascratch.parallel.axis import Axis
from tests.support.contexts import plain_context
from tests.support.rank_pool import mesh_of, on_ranks
from tests.support.sublayers import site_of

ALONE = Axis.alone("tp")
IDS = torch.tensor([[0, 36, 5, 36], [7, 18, 19, 1]])
TABLE = torch.arange(37 * 4, dtype=torch.float64).view(37, 4)
UPSTREAM = torch.arange(32, dtype=torch.float64).view(4, 2, 4)


@pytest.mark.parametrize(
    ("vocab", "divisible", "tp", "rows"),
    [(61, 8, 1, 64), (61, 8, 4, 64), (64, 8, 4, 64), (65, 8, 4, 96), (50257, 128, 1, 50304)],
)
def test_the_vocabulary_is_padded_to_a_multiple_for_every_rank(vocab, divisible, tp, rows):
    assert padded_vocab_size(vocab, divisible, tp) == rows


def looked_up(sequence_parallel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """On a rank: (output, gradient of this rank's rows)."""
    tp = mesh_of(tp=4).tp
    layer = VocabParallelEmbedding(
        vocab_shard(37, 4, 2, tp, 1.0, "embedding"), tp, sequence_parallel
    )
    table = torch.zeros(40, 4, dtype=torch.float64)
    table[:37] = TABLE
    layer.weight.data = table.chunk(4)[tp.rank].clone()
    y = layer(IDS)
    y.backward(UPSTREAM.chunk(4)[tp.rank] if sequence_parallel else UPSTREAM)
    return y.detach(), layer.weight.grad


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_a_table_over_four_ranks_gives_each_id_its_row_and_each_row_its_gradient(sequence_parallel):
    expected_table = TABLE.clone().requires_grad_()
    expected = F.embedding(IDS.t(), expected_table)
    expected.backward(UPSTREAM)
    ranks = on_ranks(4, looked_up, sequence_parallel)
    for rank, (y, _) in enumerate(ranks):
        assert torch.equal(y, expected.chunk(4)[rank] if sequence_parallel else expected)
    gradient = torch.cat([grad for _, grad in ranks])
    assert torch.equal(gradient[:37], expected_table.grad) and (gradient[37:] == 0).all()


def test_positions_under_sequence_parallel_are_this_ranks_own():
    layer = PositionEmbedding(10, 2, Axis("tp", 2, 1, (0, 1)), 1.0, sequence_parallel=True)
    layer.weight.data = torch.arange(20.0).view(10, 2)
    assert layer(torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1]]))[:, :, 0].tolist() == [
        [4.0, 0.0],
        [6.0, 2.0],
    ]
    assert layer.shards["weight"].grad_sum == ("tp",)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_is_its_formula(bias):
    norm, x = NORMS["LayerNorm"](6, 1e-5, bias=bias, grad_sum=()), torch.randn(3, 2, 6)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    y = (
        (x - x.mean(-1, keepdim=True))
        / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        * norm.weight
    )
    assert torch.allclose(norm(x), y + norm.bias if bias else y, atol=1e-6)
    assert norm.shards.keys() == dict(norm.named_parameters()).keys()


def test_rms_norm_is_its_formula_and_has_no_bias():
    norm, x = NORMS["RMSNorm"](6, 1e-5, bias=True, grad_sum=()), torch.randn(3, 2, 6)
    torch.nn.init.normal_(norm.weight)
    assert torch.allclose(
        norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight, atol=1e-6
    )
    assert list(norm.shards) == ["weight"]


@pytest.mark.parametrize("kind", NORMS)
def test_a_weight_minus_one_is_the_same_norm_and_begins_at_zero(kind):
    """In bf16 a factor of 1 + 1/1024 is kept, which bf16 itself rounds to 1; weights do not decay."""
    plain = NORMS[kind](6, 1e-5, bias=True, grad_sum=("tp",))
    centred = NORMS[kind](6, 1e-5, bias=True, grad_sum=("tp",), minus_one=True)
    for name, parameter in plain.named_parameters():
        torch.nn.init.normal_(parameter, 1.0)
        centred.get_parameter(name).data = parameter.detach() - float(name == "weight")
    x = torch.randn(3, 2, 6)
    assert torch.allclose(centred(x), plain(x), rtol=1e-6, atol=1e-6)
    shard = centred.shards["weight"]
    assert (shard.fill, plain.shards["weight"].fill) == (0.0, 1.0)
    assert (shard.decays, shard.grad_sum) == (False, ("tp",))
    half = NORMS[kind](6, 1e-5, bias=False, grad_sum=(), minus_one=True).bfloat16()
    half.weight.data.fill_(1 / 1024)
    one = x.bfloat16() * 300
    wide = F.layer_norm if kind == "LayerNorm" else F.rms_norm
    expected = wide(one.float(), (6,), torch.full((6,), 1 + 1 / 1024), eps=1e-5).bfloat16()
    assert torch.equal(half(one), expected)


@pytest.mark.parametrize("kind", NORMS)
def test_the_backward_of_a_norm_is_its_derivative(kind):
    norm = NORMS[kind](6, 1e-5, bias=False, grad_sum=())
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, x)

    assert torch.autograd.gradcheck(function, (x, norm.weight.detach().double().requires_grad_()))


def test_a_norm_of_your_own_is_asked_to_store_its_weight_minus_one():
    @register("norm", "Centred")
    class Centred(NORMS["LayerNorm"]):
        pass

    assert a_norm_can_store_its_weight_minus_one("Centred", True) is None
    spec = NormSpec("Centred", 1e-5, bias=False, minus_one=True)
    assert build_norm(spec, 6, ALONE, False).shards["weight"].fill == 0.0


FORMULAS = {
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "openai_gelu": lambda x: x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "squared_relu": lambda x: x.clamp_min(0) ** 2,
    "swiglu": lambda x: x[..., :4] * torch.sigmoid(x[..., :4]) * x[..., 4:],
}
FORMULAS |= {
    "geglu": lambda x: FORMULAS["openai_gelu"](x[..., :4]) * x[..., 4:],
    "geglu_exact": lambda x: FORMULAS["gelu"](x[..., :4]) * x[..., 4:],
    "quick_geglu": lambda x: x[..., :4] * torch.sigmoid(1.702 * x[..., :4]) * x[..., 4:],
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_activation_is_its_formula(kind):
    function = ACTIVATIONS[kind].function
    x = torch.randn(5, 8, dtype=torch.float64)
    assert torch.allclose(function(x), FORMULAS[kind](x))
    assert torch.autograd.gradcheck(function, (x.requires_grad_(),))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_mlp_is_two_products_around_the_activation(kind):
    mlp = MLP(MLPSpec(width=4, activation=kind, bias=True), site_of(6))
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 2, 6)
    inner = FORMULAS[kind](x @ mlp.fc1.weight.T + mlp.fc1.bias)
    expected = inner @ mlp.fc2.weight.T + mlp.fc2.bias
    assert torch.allclose(mlp(x, plain_context(3, torch.arange(2))), expected, atol=1e-5)


def test_a_gated_activation_is_limited_as_in_gpt_oss():
    """The gate from above, the other half on both sides; the offset is added after that."""
    spec = MLPSpec(4, "quick_geglu", True, (), clamp=0.5, linear_offset=1.0)
    function = MLP(spec, site_of(6)).activation
    x = torch.tensor([[-3.0, 0.2, 0.5, 2.0, -2.0, 0.1, 0.5, 4.0]], dtype=torch.float64)
    gate = torch.tensor([[-3.0, 0.2, 0.5, 0.5]], dtype=torch.float64)
    up = torch.tensor([[0.5, 1.1, 1.5, 1.5]], dtype=torch.float64)
    assert torch.allclose(function(x), gate / (1 + (-1.702 * gate).exp()) * up)
    assert torch.autograd.gradcheck(function, (torch.randn(3, 8).double().requires_grad_(),))


def test_dropout_zeroes_its_share_and_scales_the_rest():
    x = torch.ones(200, 3, 50)
    y = Dropout(0.25, 1, 0, ALONE)(x, plain_context(200, torch.arange(3)))
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    for dim in range(3):  # no position, sample or channel is favoured
        shares = (y == 0).float().mean([d for d in range(3) if d != dim])
        assert shares.min() > 0.05 and shares.max() < 0.45


def test_dropout_is_off_in_evaluation_and_at_rate_0():
    x, context = torch.ones(2, 1, 4), plain_context(2, torch.arange(1))
    assert (
        Dropout(0.5, 1, 0, ALONE).eval()(x, context) is x
        and Dropout(0.0, 1, 0, ALONE)(x, context) is x
    )


def test_a_cut_sequence_or_cut_heads_have_the_masks_of_the_whole():
    x, samples = torch.ones(8, 2, 6), torch.tensor([3, 11])
    context = plain_context(8, samples)
    whole = Dropout(0.5, 1, 7, ALONE)(x, context)
    parts = [
        Dropout(0.5, 1, 7, Axis("tp", 4, r, (0, 1, 2, 3)), True)(x[:2], context) for r in range(4)
    ]
    assert torch.equal(torch.cat(parts), whole)
    weights, context = torch.ones(2, 4, 5, 5), plain_context(5, samples)
    whole = AttentionDropout(0.5, 1, 7, ALONE)(weights, context)
    parts = [
        AttentionDropout(0.5, 1, 7, Axis("tp", 2, r, (0, 1)))(weights[:, :2], context)
        for r in range(2)
    ]
    assert torch.equal(torch.cat(parts, 1), whole)
