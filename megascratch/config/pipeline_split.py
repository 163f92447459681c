"""Splits the layers of a model over pipeline stages. Pure arithmetic.

Virtual stage v = chunk * pp + stage: the model runs through all stages once per chunk, so model order is
chunk-major. There are three ways to split: evenly, evenly around a given first and/or last stage, or by a list.
"""

from collections.abc import Sequence

from megascratch.config.errors import SettingError
from megascratch.config.remedies import (
    Broken,
    Remedy,
    complaint,
    divisors_near,
    each,
    near_multiples,
)

MOST_STAGES = 100_000  # a split is a list with an entry for each


class CutError(SettingError):
    """A split that is not possible, with values to change; the laws try out which of them help."""

    def __init__(self, law: str, *remedies: Remedy, otherwise: str = ""):
        self.broken = Broken(law, remedies, otherwise)
        super().__init__(complaint(self.broken, lambda setting, value: True))


def layer_cut(
    num_layers: int,
    pp: int,
    chunks: int,
    first: int | None = None,
    last: int | None = None,
    layout: Sequence[int] | None = None,
) -> list[int]:
    """Layers of each of the pp * chunks virtual stages, in model order; they sum to num_layers.

    `first` and `last` are the layers of the first and last stage, all their chunks together.
    A stage may have no layers only in an explicit layout.
    Raises CutError for a split that is not possible.
    """
    if pp * chunks > MOST_STAGES:
        raise CutError(
            f"pipeline-model-parallel-size x virtual stages ({pp} x {chunks}) must be at most {MOST_STAGES:,}",
            otherwise="use a smaller pipeline",
        )
    if layout is not None:
        return _explicit(num_layers, pp, chunks, first, last, layout)
    if first is None and last is None:
        return _even(num_layers, pp, chunks)
    per_stage = _around_the_ends(num_layers, pp, chunks, first, last)
    return [layers // chunks for _ in range(chunks) for layers in per_stage]


def _explicit(
    num_layers: int,
    pp: int,
    chunks: int,
    first: int | None,
    last: int | None,
    layout: Sequence[int],
) -> list[int]:
    if first is not None or last is not None:
        raise CutError(
            "pipeline-model-parallel-layout already sets the layers of the first and last stage",
            otherwise="remove decoder-first-pipeline-num-layers and decoder-last-pipeline-num-layers",
        )
    if len(layout) != pp * chunks:
        raise CutError(
            f"pipeline-model-parallel-layout has {len(layout)} entries but there are pipeline-model-parallel-size x "
            f"virtual stages ({pp} x {chunks})",
            otherwise=f"give {pp * chunks} numbers",
        )
    if any(layers < 0 for layers in layout):
        raise CutError(
            f"pipeline-model-parallel-layout ({_words(layout)}) has a negative entry",
            otherwise="use 0 or more layers",
        )
    if sum(layout) != num_layers:
        raise CutError(
            f"pipeline-model-parallel-layout ({_words(layout)}) sums to {sum(layout)} but num-layers is {num_layers}",
            Remedy("num_layers", [[sum(layout)]]),
            otherwise=f"change the layout by {num_layers - sum(layout):+d}",
        )
    return list(layout)


def _even(num_layers: int, pp: int, chunks: int) -> list[int]:
    pieces = pp * chunks
    if num_layers < 1 or num_layers % pieces:
        counts = [count for count in divisors_near(num_layers, pieces) if count % chunks == 0]
        stages = [count // chunks for count in counts]
        raise CutError(
            f"num-layers ({num_layers}) must be divisible by pipeline-model-parallel-size x virtual stages "
            f"({pp} x {chunks})",
            Remedy("num_layers", near_multiples(num_layers, pieces)),
            Remedy("pipeline_model_parallel_size", each(stages)),
            otherwise="set the layers of each stage with pipeline-model-parallel-layout",
        )
    return [num_layers // pieces] * pieces


def _around_the_ends(
    num_layers: int, pp: int, chunks: int, first: int | None, last: int | None
) -> list[int]:
    """Layers per stage if the first and/or last are given and the others share the rest evenly."""
    if pp < 2:
        raise CutError(
            f"decoder-first/last-pipeline-num-layers need pipeline-model-parallel-size (now {pp}) of 2 or more",
            otherwise="remove them",
        )
    for name, given in (("first", first), ("last", last)):
        if given is not None and (given < chunks or given % chunks):
            raise CutError(
                f"decoder-{name}-pipeline-num-layers ({given}) must be at least 1 and divisible by the virtual "
                f"stages per rank ({chunks})",
                Remedy(f"decoder_{name}_pipeline_num_layers", near_multiples(given, chunks)),
            )
    between = pp - (first is not None) - (last is not None)
    rest = num_layers - (first or 0) - (last or 0)
    if between == 0 and rest != 0:
        raise CutError(
            f"decoder-first-pipeline-num-layers ({first}) + decoder-last-pipeline-num-layers ({last}) must be "
            f"num-layers ({num_layers}) when there are 2 stages",
            Remedy("decoder_last_pipeline_num_layers", [[num_layers - (first or 0)]]),
            Remedy("num_layers", [[(first or 0) + (last or 0)]]),
        )
    if between and (rest < between * chunks or rest % (between * chunks)):
        ends = num_layers - rest
        rows = [[ends + value for value in row] for row in near_multiples(rest, between * chunks)]
        raise CutError(
            f"the {rest} layers left by decoder-first/last-pipeline-num-layers (of {num_layers}) must be divisible by "
            f"the other stages x virtual stages ({between} x {chunks})",
            Remedy("num_layers", rows),
        )
    per_stage: list[int] = []
    if first is not None:
        per_stage.append(first)
    if between:
        per_stage += [rest // between] * between
    if last is not None:
        per_stage.append(last)
    return per_stage


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
