"""Breaks of a dry run: name -> replacements, and the law that must notice. What is noted of a rank's traffic, what an
action forgets, whose parameters count."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from megascratch.dry_run import parameters
from megascratch.model import table
from megascratch.parallel.traffic import TrafficLog
from megascratch.pipeline.runtime import _Player
from tests.support.closed_forms import Case, traffic_is_that_of_the_papers
from tests.support.imagined_models import all_ranks_count_the_model_once

Law = Callable[[Path, Callable], None]
CASES = {
    "zero1": Case(tp=2, pp=2, dp=2, microbatches=2, layers=2, zero1=True, sp=True, llama=True),
    "ddp": Case(tp=2, pp=2, dp=2, microbatches=2, layers=2, tied=True, rank=5),
}
TIED = {"pipeline_model_parallel_size": 2, "data_parallel_size": 2, "num_layers": 2}


@cache
def papers(case: str) -> Law:
    return lambda folder, run: traffic_is_that_of_the_papers(CASES[case])


def parameters_of_all(folder: Path, run: Callable) -> None:
    all_ranks_count_the_model_once(TIED)


def noting(change: Callable) -> list[tuple[Any, str, Any]]:
    """A log that notes `change(operation, axis, ranks, result)`, a list of collectives, instead of each."""

    def collective(self: TrafficLog, *what: Any) -> None:
        for changed in change(*what):
            plain_collective(self, *changed)

    return [(TrafficLog, "collective", collective)]


def without_reductions(operation: str, *rest: Any) -> list[tuple]:
    return [] if operation == "reduce_scatter" else [(operation, *rest)]


def gathers_twice(operation: str, *rest: Any) -> list[tuple]:
    return [(operation, *rest)] * (2 if operation == "all_gather" else 1)


def over_data_ranks(operation: str, axis: str, *rest: Any) -> list[tuple]:
    return [(operation, "data" if axis == "tp" else axis, *rest)]


def of_the_part(operation: str, axis: str, ranks: int, result: Any) -> list[tuple]:
    return [(operation, axis, 1 if operation == "reduce_scatter" else ranks, result)]


def forgotten(self: _Player, action: Any) -> None:
    self.input_grads.pop((action.microbatch, action.chunk))


plain_collective = TrafficLog.collective

BREAKS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "a reduce-scatter is not noted": (noting(without_reductions), papers("zero1")),
    "an all-gather is noted twice": (noting(gathers_twice), papers("zero1")),
    "the traffic of tensor ranks is that of data ranks": (noting(over_data_ranks), papers("ddp")),
    "a reduce-scatter has the bytes of its result": (noting(of_the_part), papers("zero1")),
    "an action forgets its send": ([(_Player, "send_grad", forgotten)], papers("ddp")),
    "a tied head counts next to its embedding": (
        [(table, "EMBEDDING_WEIGHT", "head.weight")],
        parameters_of_all,
    ),
    "each data rank counts its copy of the model": (
        [(parameters, "_is_first_data_rank", lambda shard, position: True)],
        parameters_of_all,
    ),
}
