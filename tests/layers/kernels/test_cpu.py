"""The kernels of csrc/cpu_kernels.h against the formulas in torch's own pieces, and where they may not be taken."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from megascratch.config.layers import AttentionSpec, RopeSpec
from megascratch.layers.attention import Attention
from megascratch.layers.kernels import cpu
from megascratch.layers.kernels.activations import gelu, swiglu
from megascratch.layers.kernels.rotary import split_heads
from megascratch.layers.norm import NORMS
from megascratch.layers.rotary import rotary_angles
from tests.support.contexts import plain_context
from tests.support.sublayers import site_of

# around what one instruction takes: 8 numbers in fp64, 16 in fp32
WIDTHS = [
    1,
    7,
    8,
    15,
    16,
    17,
    33,
    100,
]
EDGES = [0.0, -0.0, 30.0, -30.0, 87.0, -87.0, 89.0, -89.0, 700.0, -710.0, 1e30, -1e30]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    precision = torch.finfo(found.dtype).eps
    return torch.allclose(found, expected.to(found.dtype), rtol=20 * precision, atol=20 * precision)


def draw(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu_and_its_gradient(width, dtype):
    x, grad = draw(3, 2, 2 * width, dtype=dtype), draw(3, 2, width, dtype=dtype)
    wide = x.double().requires_grad_()
    expected = F.silu(wide[..., :width]) * wide[..., width:]
    expected.backward(grad.double())
    assert close(cpu.swiglu(x), expected) and close(cpu.swiglu_backward(x, grad), wide.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_swiglu_far_out_and_with_what_is_no_number(dtype):
    gate = torch.tensor(EDGES, dtype=dtype)
    found = cpu.swiglu(torch.stack((gate, torch.ones_like(gate))).view(1, -1))
    assert torch.allclose(found[0], F.silu(gate), rtol=1e-6, atol=1e-7) and found.isfinite().all()
    assert cpu.swiglu(torch.tensor([[torch.nan, 1.0]], dtype=dtype)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm_and_its_gradients(width, dtype):
    x, weight, grad = (
        draw(*shape, dtype=dtype) for shape in ((3, 2, width), (width,), (3, 2, width))
    )
    wide, scaled = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.rms_norm(wide, (width,), scaled, 1e-5)
    expected.backward(grad.double())
    out, scale = cpu.rms_norm(x, weight, 1e-5)
    grad_x, grad_weight = cpu.rms_norm_backward(x, weight, scale, grad)
    assert close(out, expected) and close(grad_x, wide.grad) and close(grad_weight, scaled.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("first", "rows"), [(0, 1), (0, 16), (0, 37), (5, 12), (32, 32), (128, 128)]
)
def test_causal_softmax_and_its_gradient(first, rows, dtype):
    columns = first + rows
    scores, grad = (draw(2, rows, columns, dtype=dtype) * 4 for _ in range(2))
    wide = scores.double().requires_grad_()
    later = torch.ones(rows, columns, dtype=torch.bool).triu_(first + 1)
    expected = (0.3 * wide).masked_fill(later, -torch.inf).softmax(-1)
    expected.backward(grad.double())
    weights = cpu.causal_softmax_(scores, first, 0.3)
    assert close(weights, expected) and (weights[:, later] == 0).all()
    assert close(cpu.causal_softmax_backward_(weights, grad, first, 0.3), wide.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_causal_softmax_of_scores_far_apart(dtype):
    scores = torch.tensor(
        [[[1e30, 5.0, 5.0], [-1e30, -1e30, 0.0], [-1e30, 80.0, 1e30]]], dtype=dtype
    )
    found = cpu.causal_softmax_(scores, 0, 1.0)
    expected = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]], dtype=dtype)
    assert torch.allclose(found, expected, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by_tanh", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_gradient_of_gelu(width, by_tanh, dtype):
    x, grad = 3 * draw(2, width, dtype=dtype), draw(2, width, dtype=dtype)
    wide = x.double().requires_grad_()
    # torch's own tanh loses digits far below 0
    inner = (8 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    (wide * inner.sigmoid() if by_tanh else F.gelu(wide)).backward(grad.double())
    assert close(cpu.gelu_backward(x, grad, by_tanh), wide.grad)


@pytest.mark.parametrize("by_tanh", [False, True])
def test_the_gradient_of_gelu_far_out(by_tanh):
    x = torch.tensor(EDGES, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        found = cpu.gelu_backward(x.to(dtype), torch.ones(len(x), dtype=dtype), by_tanh)
        assert torch.allclose(
            found[2:6].double(), torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        )
        assert found.isfinite()[:10].all() and found[:2].tolist() == [0.5, 0.5]


def all_kernels(threads: int) -> list[torch.Tensor]:
    """Of inputs large enough for every thread to have a part."""
    torch.set_num_threads(threads)
    x, grad, weight = (
        draw(*shape, dtype=torch.float32) for shape in ((700, 201, 2), (700, 201), (402,))
    )
    x, scores = x.view(700, 402), draw(5, 70, 130, dtype=torch.float32)
    out, scale = cpu.rms_norm(x, weight, 1e-5)
    weights = cpu.causal_softmax_(scores, 60, 0.3)
    angles = [
        angle.permute(1, 2, 0, 3)
        for angle in rotary_angles(torch.arange(67).expand(7, -1), ROPE, x.dtype)
    ]
    heads, turned = (
        draw(7, 67, 72, 8, dtype=torch.float32).transpose(1, 2),
        torch.zeros(7, 72, 67, 8),
    )
    cpu.apply_rotary(heads, *angles, turned, False)
    return [
        cpu.swiglu(x),
        cpu.swiglu_backward(x, grad),
        cpu.gelu_backward(x, out, True),
        out,
        *cpu.rms_norm_backward(x, weight, scale, out),
        weights.clone(),
        cpu.causal_softmax_backward_(weights, scores.clone(), 60, 0.3),
        turned,
    ]


@pytest.mark.skipif(not cpu.supports_threads(), reason="torch's threads cannot be shared here")
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_rows(threads):
    for mine, shared in zip(all_kernels(1), all_kernels(threads), strict=True):
        assert torch.allclose(mine, shared, rtol=1e-4, atol=1e-4) and shared.isfinite().all()


def test_where_threads_cannot_be_shared_torch_keeps_them(monkeypatch):
    monkeypatch.setattr(cpu, "supports_threads", lambda: False)
    assert cpu.supports(torch.ones(2))
    torch.set_num_threads(2)
    assert not cpu.supports(torch.ones(2))
    mine = through_all(13, torch.float64)
    monkeypatch.undo()
    for found, expected in zip(through_all(13, torch.float64), mine, strict=True):
        assert (found - expected).norm() <= 1e-13 * expected.norm()


ROPE = RopeSpec(dims=6, base=100.0)
FOUR = RopeSpec(dims=4, base=100.0)
SPEC = AttentionSpec(
    heads=3, groups=3, head_width=8, qkv_bias=True, output_bias=True, dropout=0.0, rope=ROPE
)


def through_all(s: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and gradients of every layer that has a kernel, from inputs that are not contiguous."""
    torch.manual_seed(1)
    x = (
        torch.randn(2, s, 48, dtype=torch.float64)
        .to(dtype)[..., ::2]
        .transpose(0, 1)
        .requires_grad_()
    )
    norm = NORMS["RMSNorm"](24, 1e-5, bias=False, grad_sum=()).to(dtype)
    layer = Attention(SPEC, site_of(24)).to(dtype)
    weights = [*norm.parameters(), *layer.parameters()]
    for weight in weights:
        torch.nn.init.normal_(weight, std=0.3)
    angles = rotary_angles(torch.arange(s).expand(2, s), ROPE, dtype)
    y = layer(norm(x), plain_context(s, torch.arange(2), rotary={ROPE: angles}))
    out = gelu(swiglu(y.transpose(0, 1))).square().cumsum(1)
    return [out, *torch.autograd.grad(out.sum(), [x, *weights])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("s", [1, 13, 128, 150])
def test_layers_with_and_without_kernels_are_the_same_model(s, dtype, monkeypatch):
    taken = []
    monkeypatch.setattr(
        cpu, "apply_rotary", lambda *args, turn=cpu.apply_rotary: taken.append(1) or turn(*args)
    )
    mine = through_all(s, dtype)
    assert len(taken) == 3, "the kernels were not asked"
    monkeypatch.setattr(cpu, "supports", lambda *_: False)
    theirs = through_all(s, dtype)
    assert len(taken) == 3, "the kernels were asked"
    precision = torch.finfo(dtype).eps
    for found, expected in zip(mine, theirs, strict=True):
        assert (found - expected).norm() <= 100 * precision * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_are_left_to_torch(dtype):
    assert not cpu.supports(torch.ones(2, dtype=dtype))
    assert not cpu.supports(torch.ones(2), torch.ones(2, dtype=dtype))
    x = torch.linspace(-3, 3, 8).to(dtype)
    assert torch.equal(swiglu(x), F.silu(x[:4]) * x[4:])


def test_angles_of_one_sample_are_those_of_all_and_others_do_not_fit():
    qkv, heads = draw(3, 2, 5, 6, dtype=torch.float64), (3, 1, 1)
    found = split_heads(qkv, heads, rotary_angles(torch.arange(3)[None], FOUR, qkv.dtype))
    expected = split_heads(
        qkv, heads, rotary_angles(torch.arange(3).expand(2, -1), FOUR, qkv.dtype)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for positions in (torch.arange(4).expand(2, -1), torch.arange(6).view(3, 2)):
        with pytest.raises(RuntimeError):
            split_heads(qkv, heads, rotary_angles(positions, FOUR, qkv.dtype))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_nothing_in_nothing_out(shape):
    x = torch.zeros(shape)
    assert cpu.swiglu(x).shape == (shape[0], shape[1] // 2)
    assert cpu.swiglu_backward(x, x[:, ::2]).shape == shape
    assert cpu.gelu_backward(x, x, False).shape == shape


def test_a_second_derivative_is_refused_rather_than_wrong():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad((gelu(x) + x**2).sum(), x, create_graph=True)


def test_rotary_angles_of_each_sample_are_its_own():
    """The angles' steps over samples and positions are not those of the heads."""
    qkv, positions = draw(3, 2, 5, 6, dtype=torch.float64), torch.tensor([[1, 2, 3], [4, 5, 9]])
    both = split_heads(qkv, (3, 1, 1), rotary_angles(positions, FOUR, qkv.dtype))
    for b in range(2):
        alone = split_heads(
            qkv[:, b : b + 1], (3, 1, 1), rotary_angles(positions[b : b + 1], FOUR, qkv.dtype)
        )
        for found, expected in zip(both, alone, strict=True):
            assert torch.equal(found[b : b + 1], expected)


WITHOUT = """
import sys, warnings
sys.modules["megascratch.layers._cpu_kernels"] = None  # as if it were not compiled
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import megascratch.layers.attention, megascratch.layers.norm, megascratch.layers.rotary
    from megascratch.layers.kernels import cpu
    from megascratch.layers.kernels.activations import gelu, swiglu
    from megascratch.layers.kernels.norms import rms_norm
import torch
x = torch.linspace(-3, 3, 8, requires_grad=True)
swiglu(gelu(rms_norm(x, torch.ones(8), 1e-5))).sum().backward()
assert x.grad.isfinite().all()
assert not cpu.supports(x) and not cpu.supports_threads()
print([str(warning.message).split(" (")[0] for warning in said if "extension" in str(warning.message)])
"""


def test_without_the_compiled_extension_the_layers_use_torch_and_warn_once():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("['the C++ extensions are not built']\n", 0), (
        done.stderr
    )
