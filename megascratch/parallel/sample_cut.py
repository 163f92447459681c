"""Which tokens of a sample each rank has under context parallelism. Pure arithmetic.

A rank knows the positions of its tokens, and every layer reads them. So any assignment gives the same model, and
an assignment only decides how evenly the ranks work: a token at position p sees p + 1 tokens, or those of its document.

    zigzag      chunks r and 2 cp - 1 - r of 2 cp chunks: each rank has an early and a late one (Llama 3,
                arXiv 2407.21783, section 3.3.2)
    documents   blocks, the expensive ones first, each to the rank with the least work so far
    contiguous  one chunk each
"""

from dataclasses import dataclass, field

import numpy as np

BLOCKS = 16  # of each rank, if the length is divisible: `balanced` deals them out


@dataclass(frozen=True, eq=False)
class SampleCut:
    """Who has which tokens of the samples of a micro-batch. What is found out is kept, because every layer asks."""

    positions: np.ndarray
    """[ranks, s] ascending positions of each rank's tokens."""
    starts: np.ndarray | None = None
    """[b, length] where the document of each token begins; None: a sample is one document."""

    _distances: dict[int | None, int] = field(default_factory=dict, repr=False)

    def joined(self, size: int) -> "SampleCut":
        """The same where `size` neighbouring ranks bring their tokens together; each row ascends again."""
        rows = self.positions.reshape(len(self.positions) // size, -1)
        return SampleCut(np.sort(rows, axis=1), self.starts)

    def distance(self, window: int | None) -> int:
        """How many ranks back around the ring the farthest is whose keys a query of some rank sees."""
        if window not in self._distances:
            self._distances[window] = self._distance(window)
        return self._distances[window]

    def _distance(self, window: int | None) -> int:
        ranks = len(self.positions)
        for back in range(ranks - 1, 0, -1):
            if any(self.sees(rank, (rank - back) % ranks, window) for rank in range(ranks)):
                return back
        return 0

    def sees(self, rank: int, other: int, window: int | None) -> bool:
        """Whether a query of one rank sees a key of another."""
        queries = self.positions[rank]
        first = np.zeros_like(queries)
        if self.starts is not None:
            first = self.starts[:, queries].min(0)
        if window is not None:
            first = np.maximum(first, queries - window + 1)
        keys = self.positions[other]
        before = np.searchsorted(keys, first, side="left")
        up_to = np.searchsorted(keys, queries, side="right")
        return bool((up_to > before).any())


def positions_of_ranks(
    order: str, length: int, ranks: int, starts: np.ndarray | None = None
) -> np.ndarray:
    """The positions of each rank's tokens, ascending: [ranks, length / ranks].

    Args:
        starts: [b, length] where the document of each token begins, for each sample of a micro-batch; None: a sample
            is one document.

    Raises: ValueError if the ranks cannot have equal numbers of tokens.
    """
    parts = ranks if order == "contiguous" else 2 * ranks
    if length % parts:
        raise ValueError(f"{length} tokens cannot be cut into {parts} equal parts")
    if order == "documents" and starts is not None:
        seen = np.arange(length) + 1 - starts  # [b, length]
        return balanced(seen.sum(0), ranks)
    if order == "contiguous":
        return np.arange(length).reshape(ranks, -1)
    chunks = np.arange(length).reshape(2 * ranks, -1)
    return np.concatenate((chunks[:ranks], chunks[: ranks - 1 : -1]), axis=1)


def balanced(costs: np.ndarray, ranks: int) -> np.ndarray:
    """Positions of each rank, so that the ranks have equal numbers of tokens and sums of `costs` [length] that are as
    equal as dealing out whole blocks makes them."""
    length = len(costs)
    blocks_each = next(
        n for n in range(min(BLOCKS, length // ranks), 0, -1) if length % (n * ranks) == 0
    )
    size = length // (blocks_each * ranks)
    sums = costs.reshape(-1, size).sum(1)
    work = [0] * ranks
    taken: list[list[int]] = [[] for _ in range(ranks)]
    for block in np.argsort(-sums, kind="stable"):
        open_ranks = [rank for rank in range(ranks) if len(taken[rank]) < blocks_each]
        rank = min(open_ranks, key=lambda each: (work[each], each))
        work[rank] += int(sums[block])
        taken[rank].append(int(block))
    positions = []
    for blocks in taken:
        firsts = size * np.sort(np.array(blocks))
        positions.append((firsts[:, None] + np.arange(size)).ravel())
    return np.stack(positions)
