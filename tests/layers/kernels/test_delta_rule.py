"""The gated delta rule in chunks against its definition, and its documents against each one alone."""

import pytest
import torch
import torch.nn.functional as F

from megascratch.layers.kernels.delta_rule import (
    DeltaInputs,
    chunked,
    recurrent,
    short_convolution,
)

B, N, S, D, E = 2, 3, 23, 4, 5


def inputs(s: int = S) -> DeltaInputs:
    stream = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    q, k, v = draw(B, N, s, D), F.normalize(draw(B, N, s, D), dim=-1), draw(B, N, s, E)
    g, beta = -draw(B, N, s).abs(), draw(B, N, s).sigmoid()
    return DeltaInputs(*(x.requires_grad_() for x in (q, k, v, g, beta)))


def starts_at(*firsts: list[int]) -> torch.Tensor:
    starts = torch.zeros(len(firsts), S, dtype=torch.int64)
    for row, places in enumerate(firsts):
        for place in places:
            starts[row, place:] = place
    return starts


def by_hand(x: DeltaInputs) -> torch.Tensor:
    """The definition for one head of one sample, with loops over numbers' rows."""
    state = torch.zeros(D, E, dtype=torch.float64)
    rows = []
    for t in range(x.q.shape[2]):
        state = state * x.g[0, 0, t].exp()
        error = x.v[0, 0, t] - state.t() @ x.k[0, 0, t]
        state = state + torch.outer(x.k[0, 0, t], x.beta[0, 0, t] * error)
        rows.append(state.t() @ x.q[0, 0, t])
    return torch.stack(rows)


def test_the_definition_is_the_papers():
    x = inputs()
    found, _ = recurrent(x, torch.arange(S), None, torch.zeros(B, N, D, E).double())
    assert torch.allclose(found[0, 0], by_hand(x), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 5, 8, 64])
@pytest.mark.parametrize("starts", [None, starts_at([5, 8, 9, 16], [7]), starts_at([1, 2, 22], [])])
@pytest.mark.parametrize("first", [0, 40])
def test_chunks_are_the_definition(size, starts, first):
    """Also where documents begin at the edge of a chunk, and for tokens that go on from a state."""
    x = inputs()
    positions = first + torch.arange(S)
    if starts is not None:
        starts = starts + first * (starts > 0)
    before = torch.randn(B, N, D, E, generator=torch.Generator().manual_seed(4)).double()
    results = []
    for how in (recurrent, lambda *args: chunked(*args, size)):
        out, state = how(x, positions, starts, before)
        grads = torch.autograd.grad(out.sin().sum() + state.cos().sum(), x)
        results.append((out, state, *grads))
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_packed_document_is_as_if_it_were_alone():
    x = inputs()
    nothing = torch.zeros(B, N, D, E).double()
    together, _ = chunked(x, torch.arange(S), starts_at([9], [9]), nothing, 8)
    alone = DeltaInputs(*(each[:, :, 9:] for each in x))
    expected, _ = chunked(alone, torch.arange(S - 9), None, nothing, 8)
    assert torch.allclose(together[:, :, 9:], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_the_convolution_is_torchs_within_documents(kept):
    """With some inputs of before, as in generation, where missing ones are zeros."""
    stream = torch.Generator().manual_seed(5)
    x = torch.randn(S, B, 6, generator=stream, dtype=torch.float64)
    weight = torch.randn(6, 4, generator=stream, dtype=torch.float64)
    starts = starts_at([3, 4, 12], [20])
    found = short_convolution(x, weight, torch.arange(S), starts)
    for row in range(B):
        places = sorted({*starts[row].tolist(), S})
        for first, end in zip(places, places[1:], strict=False):
            document = F.pad(x[first:end, row].t(), (3, 0))
            expected = F.silu(F.conv1d(document, weight[:, None], groups=6)).t()
            assert torch.allclose(found[first:end, row], expected, rtol=1e-12)
    tail = short_convolution(x[10 - kept :], weight, torch.arange(10, S), starts[:, 10:])
    missing = 3 - kept  # the first tokens lack what was not kept
    assert torch.allclose(tail[missing:], found[10 + missing :], rtol=1e-12)
