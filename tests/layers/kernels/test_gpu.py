"""What is one kernel on CUDA is what the plain steps compute, and a kernel that is not is not used."""

import pytest
import torch

from megascratch.layers.context import ForwardContext
from megascratch.layers.dropout import AttentionDropout, Dropout
from megascratch.layers.kernels import cross_entropy, dropout
from megascratch.layers.loss import vocab_parallel_cross_entropy
from megascratch.layers.visible import Visible
from megascratch.parallel.axis import Axis
from megascratch.parallel.random import keep_mask, sample_keys
from tests.support.contexts import plain_context

TP = Axis.alone("tp")
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("v", "valid"), [(64, 64), (64, 61), (8192, 8192), (20000, 19999), (50304, 50257)]
)
def test_the_loss_and_its_gradient(v, valid, dtype):
    logits = (3 * torch.randn(33, v, generator=torch.Generator().manual_seed(v))).to(dtype)
    labels, weights = torch.arange(33) * 7 % valid, torch.arange(33.0)
    told = []
    for device, x in (("cpu", logits.double()), ("cuda", logits)):
        x = x.to(device).requires_grad_()
        losses = vocab_parallel_cross_entropy(x * 1.0, labels.to(device), valid, TP)
        (losses * weights.to(device)).sum().backward()
        told.append((losses.detach().cpu().double(), x.grad.cpu().double()))
    (losses, grad), (fast_losses, fast_grad) = told
    assert torch.allclose(losses, fast_losses, rtol=1e-5, atol=1e-5)
    assert torch.allclose(grad, fast_grad, rtol=CLOSE[dtype], atol=1e-5)
    assert (fast_grad[:, valid:] == 0).all()


def context_on(device: str, s: int, samples: torch.Tensor) -> ForwardContext:
    """Of s tokens, every other one of a sample of 2 s tokens, from the last one on."""
    places = (2 * torch.arange(s)).flip(0).to(device)
    return plain_context(
        s,
        samples.to(device),
        sample_positions=places,
        sample_length=2 * s,
        visible=Visible(places, places, None, in_order=False),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("part", [0, 1])
def test_dropout_and_its_gradient(dtype, part):
    """Of the residual stream under sequence parallelism, and of attention's weights on a second tensor rank."""
    samples = torch.tensor([5, 9, 2**40 + 3])
    tp = Axis("tp", 2, part, (0, 1))
    stream = Dropout(0.3, 7, 4, tp, sequence_parallel=True), (5, 3, 1100), 10
    scores = AttentionDropout(0.2, 7, 5, tp), (3, 4, 17, 17), 17
    for layer, shape, s in (stream, scores):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        told = []
        for device in ("cpu", "cuda"):
            here = x.detach().to(device).requires_grad_()
            y = layer(here, context_on(device, s, samples))
            y.sum().backward()
            told.append((y.detach().cpu(), here.grad.cpu()))
        for a, b in zip(*told, strict=True):
            assert torch.equal(a == 0, b == 0) and torch.allclose(a, b, rtol=CLOSE[dtype], atol=0)


def right_drop(x, out, samples, sample_dim, rows, columns, width, seed, site, p):
    """`gpu.dropped`, sample by sample and row by row."""
    columns = torch.arange(x.shape[-1]) if columns is None else columns
    for number, key in enumerate(sample_keys(seed, site, samples)):
        for row, place in enumerate(rows):
            at = (row, number) if sample_dim == 1 else (number, row)
            out[at] = x[at] * keep_mask(key, place * width + columns, p) / (1 - p)


def without_columns(x, out, samples, sample_dim, rows, columns, *how):
    right_drop(x, out, samples, sample_dim, rows, None, *how)


def rows_in_order(x, out, samples, sample_dim, rows, *how):
    right_drop(x, out, samples, sample_dim, torch.arange(len(rows)), *how)


def samples_last(x, out, samples, sample_dim, *how):
    right_drop(x.view(3, 2, 5), out.view(3, 2, 5), samples, 1, *how)


def right_rows(logits, labels, first, valid, out):
    out[0] = logits[:, :valid].amax(-1)
    out[1] = (logits[:, :valid] - out[0][:, None]).exp().sum(-1)
    out[2] = logits.gather(1, (labels - first)[:, None])[:, 0]


def right_gradient(logits, labels, first, valid, peak, total, grad):
    logits.sub_(peak[:, None]).exp_().mul_((grad / total)[:, None])[:, valid:] = 0
    logits[torch.arange(len(labels)), labels - first] -= grad


def breaks(*args):
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize(
    ("drop", "used"),
    [
        (right_drop, True),
        (breaks, False),
        (None, False),
        (lambda x, out, *how: out.copy_(x / 0.6), False),
        (lambda x, out, samples, *how: right_drop(x, out, samples + 1, *how), False),
        (without_columns, False),
        (rows_in_order, False),
        (samples_last, False),
    ],
)
def test_dropout_uses_its_kernel_only_where_it_agrees(drop, used, monkeypatch):
    monkeypatch.setattr(dropout, "dropped", drop)
    dropout.kernel_matches_reference.cache_clear()
    assert dropout.kernel_matches_reference(torch.device("cpu")) is used
    dropout.kernel_matches_reference.cache_clear()


@pytest.mark.parametrize(
    ("rows", "gradient", "used"),
    [
        (right_rows, right_gradient, True),
        (breaks, right_gradient, False),
        (right_rows, breaks, False),
        (None, None, False),
        (right_rows, lambda *args: None, False),
        (
            lambda logits, labels, *part: right_rows(logits, labels - 1, *part),
            right_gradient,
            False,
        ),
        (
            lambda logits, labels, first, valid, out: right_rows(
                logits, labels, first, valid + 5, out
            ),
            right_gradient,
            False,
        ),
    ],
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_loss_uses_its_kernels_only_where_they_agree(rows, gradient, used, mode, monkeypatch):
    monkeypatch.setattr(cross_entropy, "row_statistics", rows)
    monkeypatch.setattr(cross_entropy, "to_gradient", gradient)
    cross_entropy.kernel_matches_reference.cache_clear()
    with mode():
        assert cross_entropy.kernel_matches_reference(torch.device("cpu")) is used
    cross_entropy.kernel_matches_reference.cache_clear()
