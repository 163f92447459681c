"""The pipeline cut as pure arithmetic: number of layers and stages in, layers of every virtual stage out.

Virtual stage v = chunk * pp + stage: the model runs through all stages once per chunk, so model order is
chunk-major. Three ways to cut: evenly, evenly around a given first and/or last stage, or by an explicit list.
"""

from collections.abc import Sequence

from megascratch.config.errors import SettingError
from megascratch.config.remedies import Broken, Remedy, complaint, each, near_multiples
from megascratch.config.suggestions import divisors_near

MOST_STAGES = 100_000  # the cut is a list of them


class CutError(SettingError):
    """A cut that does not come out even, with what could be changed; the laws try which of it helps."""

    def __init__(self, law: str, *remedies: Remedy, otherwise: str = ""):
        self.broken = Broken(law, remedies, otherwise)
        super().__init__(complaint(self.broken, lambda setting, value: True))


FOLDED = ("zb_v", "dualpipe_v")  # schedules whose two chunks per rank lie in a V


def layer_cut(
    num_layers: int,
    pp: int,
    chunks: int,
    first: int | None = None,
    last: int | None = None,
    layout: Sequence[int] | None = None,
) -> list[int]:
    """Layers of each of the pp * chunks virtual stages, in model order; they sum to num_layers.

    `first` and `last` are the layers of the whole first and last stage (all their chunks together).
    A stage without layers is legal only in an explicit layout.
    Raises CutError for a cut that does not come out even.
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
    num_layers: int, pp: int, chunks: int, first: int | None, last: int | None, layout: Sequence[int]
) -> list[int]:
    if first is not None or last is not None:
        raise CutError(
            "pipeline-model-parallel-layout already says the first and last stage",
            otherwise="leave out decoder-first-pipeline-num-layers and decoder-last-pipeline-num-layers",
        )
    if len(layout) != pp * chunks:
        raise CutError(
            f"pipeline-model-parallel-layout has {len(layout)} entries but there are pipeline-model-parallel-size x "
            f"virtual stages ({pp} x {chunks})",
            otherwise=f"give {pp * chunks} numbers",
        )
    if any(layers < 0 for layers in layout):
        raise CutError(
            f"pipeline-model-parallel-layout ({_words(layout)}) has a negative entry", otherwise="use 0 or more layers"
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
        stages = [n // chunks for n in divisors_near(num_layers, pp * chunks) if n % chunks == 0]
        raise CutError(
            f"num-layers ({num_layers}) must be divisible by pipeline-model-parallel-size x virtual stages "
            f"({pp} x {chunks})",
            Remedy("num_layers", near_multiples(num_layers, pieces)),
            Remedy("pipeline_model_parallel_size", each(stages)),
            otherwise="cut by hand with pipeline-model-parallel-layout",
        )
    return [num_layers // pieces] * pieces


def _around_the_ends(num_layers: int, pp: int, chunks: int, first: int | None, last: int | None) -> list[int]:
    """Layers per stage when the first and/or last are given and the others share the rest evenly."""
    if pp < 2:
        raise CutError(
            f"decoder-first/last-pipeline-num-layers need pipeline-model-parallel-size (now {pp}) of 2 or more",
            otherwise="leave them out",
        )
    for name, given in (("first", first), ("last", last)):
        if given is not None and (given < chunks or given % chunks):
            raise CutError(
                f"decoder-{name}-pipeline-num-layers ({given}) must be at least 1 and divide by the virtual stages "
                f"per rank ({chunks})",
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
    middle = [rest // between] * between if between else []
    return [*([first] if first is not None else []), *middle, *([last] if last is not None else [])]


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
