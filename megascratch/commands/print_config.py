"""`megascratch pretrain --print-config`: every setting with its origin, as YAML that `--config` can read, then what a
rank holds, as comments. Needs no data, no length and no files of a tokenizer.
"""

import sys
from collections.abc import Iterator
from typing import NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.layout import Layout
from megascratch.config.load import Loaded, format_config
from megascratch.config.printable import size
from megascratch.config.resolve import Device, derive
from megascratch.config.settings import ParallelConfig
from megascratch.dry_run.settings import imagined_run, imagined_settings
from megascratch.parallel.grid import Grid


def print_config(loaded: Loaded, world: int | None) -> None:
    """Prints the settings, then parameters and memory.

    Args:
        world: the number of ranks; None: not given, so as many as one copy of the model has.

    Raises: UserError with everything that is wrong with the settings.
    """
    given = flat(loaded.config)
    ranks = world or _ranks_of_copy(loaded.config.parallel)
    changes = {}
    if not any(
        given[name] for name in ("vocab_size", "tokenizer_type", "tokenizer_model", "vocab_file")
    ):
        changes["tokenizer_type"] = "ByteTokenizer"  # only for the laws: it may be given later
    imagined_settings(loaded, ranks, changes)
    print(format_config(loaded.config, loaded.origins, derive(given, ranks)))
    sys.stdout.flush()  # what follows takes seconds
    for line in _lines(loaded, ranks, loaded.config.training.device or "cuda"):
        print(f"# {line}")


def _ranks_of_copy(parallel: ParallelConfig) -> int:
    """The ranks of one copy of the model, or of as many copies as the settings ask for."""
    layout = Layout(
        tp=parallel.tensor_model_parallel_size, pp=parallel.pipeline_model_parallel_size
    )
    return max(1, layout.ranks_of_copy * (parallel.data_parallel_size or 1))


def _lines(loaded: Loaded, ranks: int, kind: Device) -> Iterator[str]:
    """Lines that say what a rank of the first and of the last stage holds in a training step."""
    try:
        for held in holdings(loaded, ranks, kind):
            if held.stage == 0:
                yield f"{held.model:,} parameters; layout {held.layout}, world size {ranks:,}"
            yield (
                f"rank {held.rank} (stage {held.stage}): {held.parameters:,} parameters, {size(held.memory)} of {kind} "
                "memory at most, for tensors"
            )
    except UserError as error:
        yield f"parameters and memory are not known: {str(error).splitlines()[0]}"


class Holding(NamedTuple):
    """What a rank of a pipeline stage holds in a training step."""

    rank: int
    stage: int
    parameters: int
    memory: int
    """Bytes of its tensors at the peak."""
    model: int
    """Parameters of the whole model."""
    layout: str


def holdings(loaded: Loaded, ranks: int, kind: Device) -> Iterator[Holding]:
    """What a rank of the first and of the last stage holds, by a dry run of each.

    Raises: UserError if the size of the vocabulary is not known, or a setting is wrong.
    """
    run = imagined_run(loaded, ranks, kind)
    # imports torch
    from megascratch.dry_run.run import run_rank

    layout = Layout.of(run.config.parallel)
    grid = Grid(layout.sizes("dense"))
    for stage in sorted({0, layout.pp - 1}):
        rank = grid.rank(pp=stage)
        report = run_rank(run, rank)
        held, _, model = report.parameters
        yield Holding(rank, stage, held, report.memory.peak, model, layout.name)
