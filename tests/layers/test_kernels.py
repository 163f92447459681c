"""What is one kernel on CUDA is what the plain steps compute."""

import pytest
import torch

from megascratch.layers.dropout import AttentionDropout, Dropout
from megascratch.layers.loss import vocab_parallel_cross_entropy
from megascratch.parallel.mesh import Axis

pytestmark = pytest.mark.gpu
TP = Axis.alone("tp")
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("v", "valid"), [(64, 64), (64, 61), (8192, 8192), (20000, 19999), (50304, 50257)])
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


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("part", [0, 1])
def test_dropout_and_its_gradient(dtype, part):
    """Of the residual stream under sequence parallelism, and of attention's weights on a second tensor rank."""
    samples = torch.tensor([5, 9, 2**40 + 3])
    stream, scores = Dropout(0.3, 7, 4, TP), AttentionDropout(0.2, 7, 5, TP)
    stream.part = scores.rank = part
    for layer, shape in ((stream, (5, 3, 1100)), (scores, (3, 4, 17, 19))):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        told = []
        for device in ("cpu", "cuda"):
            here = x.to(device).requires_grad_()
            y = layer(here, samples.to(device))
            y.sum().backward()
            told.append((y.detach().cpu(), here.grad.cpu()))
        for a, b in zip(*told, strict=True):
            assert torch.equal(a == 0, b == 0) and torch.allclose(a, b, rtol=CLOSE[dtype], atol=0)
