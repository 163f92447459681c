"""Runs with frozen weights, on a rank and in one plain process."""

import re
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from megascratch.config.resolve import ResolvedConfig
from megascratch.model.build import build_chunks
from megascratch.training import trainer
from megascratch.verification.run_layout import RankTrace
from tests.support.layout_runs import STEPS, RunRecord, assert_same, config_of, gather
from tests.support.layout_runs import train_on_rank as train
from tests.support.plain_runs import plain_run

FROZEN = {  # the kinds of weights that there are, by their names
    "word embedding": r"embedding\.word|^head",  # tied: both copies
    "positions": r"embedding\.position",
    "norms": r"norm",
    "column-parallel": r"(qkv|fc1)\.weight",
    "row-parallel": r"(proj|fc2)\.weight",
    "biases": r"bias",
    "head": r"^head",
    "one block": r"layers\.1\.",
    "first half": r"embedding|layers\.[01]\.",
    "last half": r"layers\.[23]\.|final_norm|^head",
    "all but a norm": r"^(?!layers\.2\.norm1\.weight)",
}


def freezing(pattern: str, build: Callable = build_chunks) -> Callable:
    """`build_chunks` whose weights with such a name are frozen."""

    def build_frozen(*args: Any, **options: Any) -> list:
        chunks = build(*args, **options)
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                parameter.requires_grad_(not re.search(pattern, name))
        return chunks

    return build_frozen


def with_frozen(pattern: str, function: Callable, *args: Any) -> Any:
    """On a rank: calls the function while trainers freeze the weights of these names."""
    with patch.object(trainer, "build_chunks", freezing(pattern)):
        return function(*args)


def train_frozen(pattern: str, config: ResolvedConfig, steps: int = STEPS) -> RankTrace:
    """On a rank."""
    return with_frozen(pattern, train, config, steps)


def plain(pattern: str, config: ResolvedConfig, steps: int = STEPS) -> RunRecord:
    """The same in one process."""
    return plain_run(config, steps, freezing(pattern))[0]


def a_frozen_weight_stays(pattern: str, run: Callable) -> None:
    """Trains on two ranks by ZeRO-1. Raises: AssertionError unless all is as in one plain process."""
    config = config_of(num_layers=2, data_parallel_size=2, use_distributed_optimizer=True)
    found = gather(run(2, train_frozen, pattern, config, 3))
    assert_same(plain(pattern, config, 3), found, 1e-9)
