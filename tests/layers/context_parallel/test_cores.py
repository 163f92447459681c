"""Attention of ranks that share sequences against one softmax over all keys, written out here."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megascratch.layers.context import Shares
from megascratch.layers.context_parallel.core import CORES
from megascratch.layers.kernels.attention import Scores
from megascratch.layers.visible import Visible
from megascratch.parallel.context_axes import ContextAxes
from megascratch.parallel.sample_cut import SampleCut, positions_of_ranks
from tests.support.rank_pool import mesh_of, on_ranks

B, N, S, D = 2, 8, 48, 4
SCALE = 0.4


def starts_of(kind: str) -> np.ndarray | None:
    """Where documents begin: none, within the chunks of every rank, and exactly at their edges."""
    if kind == "one":
        return None
    cuts = {"within": ([5, 20, 21, 40], [13, 33]), "edges": ([6, 12, 24], [24, 36])}[kind]
    starts = np.zeros((B, S), dtype=np.int64)
    for row, firsts in enumerate(cuts):
        for first in firsts:
            starts[row, first:] = first
    return starts


def tensors(groups: int) -> tuple[torch.Tensor, ...]:
    stream = torch.Generator().manual_seed(7)
    draw = partial(torch.randn, generator=stream, dtype=torch.float64)
    q, k, v = draw(B, N, S, D), draw(B, groups, S, D), draw(B, groups, S, D)
    return q, k, v, draw(N), draw(B, N, S, D)


def keep(weights: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, heads: torch.Tensor):
    """A dropout that knows heads, queries and keys by their numbers."""
    number = heads[:, None, None] * 7 + rows[:, None] * 5 + keys * 3
    return weights * (number % 4 > 0) / 0.75


def one_softmax(case: dict) -> dict[str, torch.Tensor]:
    """Output and gradients of everything, with a number for each pair of query and key."""
    groups, window = case["groups"], case["window"]
    q, k, v, sinks, grad = tensors(groups)
    for x in (q, k, v, sinks):
        x.requires_grad_()
    place = torch.arange(S)
    seen = place <= place[:, None]
    if window:
        seen = seen & (place > place[:, None] - window)
    seen = seen.expand(B, 1, S, S)
    starts = starts_of(case["documents"])
    if starts is not None:
        seen = seen & (place >= torch.from_numpy(starts)[:, None, :, None])
    times = N // groups
    scores = q @ k.repeat_interleave(times, 1).transpose(2, 3) * SCALE
    if case["softcap"]:
        scores = 3 * torch.tanh(scores / 3)
    scores = scores.masked_fill(~seen, -torch.inf)
    if case["sinks"]:
        column = sinks[:, None, None].expand(B, N, S, 1)
        weights = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    if case["dropout"]:
        weights = keep(weights, place, place, torch.arange(N))
    out = weights @ v.repeat_interleave(times, 1)
    out.backward(grad)
    found = {"out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}
    return found | ({"sinks": sinks.grad} if case["sinks"] else {})


def on_a_rank(case: dict) -> dict[str, torch.Tensor]:
    cp, heads = case["cp"], case["heads"]
    mesh = mesh_of(cp=cp, cp_heads=heads)
    starts = starts_of(case["documents"])
    if case["order"] == "shuffled":
        dealt = np.random.default_rng(3).permutation(S).reshape(cp, -1)
        positions = np.sort(dealt, axis=1)
    else:
        positions = positions_of_ranks(case["order"], S, cp, starts)
    mine = torch.from_numpy(positions[mesh.cp.rank])
    q, k, v, sinks, grad = tensors(case["groups"])
    q, k, v = (x[:, :, mine].requires_grad_() for x in (q, k, v))
    sinks.requires_grad_()
    own_starts = None if starts is None else torch.from_numpy(starts)
    shares = Shares(SampleCut(positions, starts), torch.device("cpu"), own_starts)

    def dropout(weights: torch.Tensor, visible: Visible, first_head: int) -> torch.Tensor:
        numbers = first_head + torch.arange(weights.shape[1])
        return keep(weights, visible.queries, visible.keys, numbers)

    scores = Scores(SCALE, 3.0 if case["softcap"] else None, dropout if case["dropout"] else None)
    out = CORES[case["kind"]](
        q,
        k,
        v,
        sinks if case["sinks"] else None,
        SimpleNamespace(shares=shares),
        case["window"],
        scores,
        ContextAxes(mesh.cp, case["kind"], mesh.cp_heads, mesh.cp_ring),
    )
    out.backward(grad[:, :, mine])
    found = {"positions": mine, "out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}
    return found | ({"sinks": sinks.grad} if case["sinks"] else {})


PLAIN = {
    "cp": 2,
    "heads": 1,
    "order": "zigzag",
    "documents": "one",
    "window": None,
    "groups": 8,
    "sinks": False,
    "softcap": False,
    "dropout": False,
}
KINDS = [
    ("all_gather", {}),
    ("p2p", {}),
    ("a2a", {"order": "contiguous"}),
    ("a2a+p2p", {"cp": 4, "heads": 2}),
]
CASES = [
    {},
    {"cp": 4, "groups": 2},
    {"cp": 4, "order": "contiguous", "documents": "edges", "window": 13, "sinks": True},
    {"cp": 4, "order": "documents", "documents": "within", "groups": 1, "dropout": True},
    {"cp": 2, "order": "shuffled", "documents": "within", "window": 5, "softcap": True},
    {"cp": 4, "order": "zigzag", "window": 1, "sinks": True, "dropout": True, "groups": 4},
    {"cp": 2, "order": "zigzag", "documents": "edges", "window": 7, "groups": 4},
    {"cp": 8, "documents": "edges", "groups": 2, "sinks": True, "order": "contiguous"},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)) or "plain")
@pytest.mark.parametrize(("kind", "more"), KINDS, ids=[kind for kind, _ in KINDS])
def test_ranks_that_share_sequences_attend_as_one_softmax(kind, more, case):
    case = {**PLAIN, **more, **case, "kind": kind}
    case["heads"] = 2 if kind == "a2a+p2p" else 1
    if case["order"] == "zigzag" and S % (2 * case["cp"]):
        case["order"] = "contiguous"
    expected = one_softmax(case)
    ranks = on_ranks(case["cp"], on_a_rank, case)
    for found in ranks:
        mine = found["positions"]
        for name in ("out", "q", "k", "v"):
            wanted = expected[name][:, :, mine]
            assert torch.allclose(found[name], wanted, rtol=1e-11, atol=1e-12), name
    if case["sinks"]:
        total = sum(found["sinks"] for found in ranks)
        assert torch.allclose(total, expected["sinks"], rtol=1e-11, atol=1e-12)
