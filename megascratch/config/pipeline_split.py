"""Splits the layers of a model over pipeline stages. Pure arithmetic.

Virtual stage v = chunk * pp + stage: the model runs through all stages once per chunk, so model order is
chunk-major. There are three ways to split: evenly (the embedding and the output layer may count as layers), evenly
around a given first and/or last stage, or by hand: a list of numbers or a text (see `stage_string.py`).
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
from megascratch.config.settings import ParallelConfig
from megascratch.config.stage_string import StageStringError, layers_of_string

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
    layout: Sequence[int] | str | None = None,
    *,
    embedding_counts: bool = False,
    loss_counts: bool = False,
) -> list[int]:
    """Layers of each of the pp * chunks virtual stages, in model order; they sum to num_layers.

    Args:
        first, last: the layers of the first and last stage, all their chunks together.
        layout: the layers of each virtual stage.
        embedding_counts, loss_counts: the first or last virtual stage has one layer less than the others.

    A stage may have no layers only in an explicit layout, or where the embedding or the output layer counts as one.
    Raises CutError for a split that is not possible.
    """
    if pp * chunks > MOST_STAGES:
        raise CutError(
            f"pipeline-model-parallel-size x virtual stages ({pp} x {chunks}) must be at most {MOST_STAGES:,}",
            otherwise="use a smaller pipeline",
        )
    if embedding_counts or loss_counts:
        _require_nothing_else(embedding_counts, first, last, layout)
        return _even_with_ends(num_layers, pp, chunks, embedding_counts, loss_counts)
    if layout is not None:
        return _explicit(num_layers, pp, chunks, first, last, layout)
    if first is None and last is None:
        return _even(num_layers, pp, chunks)
    per_stage = _around_the_ends(num_layers, pp, chunks, first, last)
    return [layers // chunks for _ in range(chunks) for layers in per_stage]


def cut_of(num_layers: int, pp: int, parallel: ParallelConfig) -> list[int]:
    """`layer_cut` over `pp` stages as the settings ask for it; their number of chunks must be derived."""
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    assert chunks is not None
    return layer_cut(
        num_layers,
        pp,
        chunks,
        parallel.decoder_first_pipeline_num_layers,
        parallel.decoder_last_pipeline_num_layers,
        parallel.pipeline_model_parallel_layout,
        embedding_counts=parallel.account_for_embedding_in_pipeline_split,
        loss_counts=parallel.account_for_loss_in_pipeline_split,
    )


def stages_of(layout: Sequence[int] | str | None) -> int | None:
    """The number of virtual stages of a layout; None if there is none, or a text that does not say it."""
    if not isinstance(layout, str):
        return len(layout) if layout else None
    try:
        return len(layers_of_string(layout))
    except StageStringError:
        return None


def _explicit(
    num_layers: int,
    pp: int,
    chunks: int,
    first: int | None,
    last: int | None,
    layout: Sequence[int] | str,
) -> list[int]:
    words = layout if isinstance(layout, str) else " ".join(map(str, layout))
    noun = "entries"
    if isinstance(layout, str):
        noun = "stages"
        try:
            layout = layers_of_string(layout)
        except StageStringError as error:
            raise CutError(
                f"pipeline-model-parallel-layout ({words}) {error.law}", otherwise=error.remedy
            ) from None
    if first is not None or last is not None:
        raise CutError(
            "pipeline-model-parallel-layout already sets the layers of the first and last stage",
            otherwise="remove decoder-first-pipeline-num-layers and decoder-last-pipeline-num-layers",
        )
    if len(layout) != pp * chunks:
        raise CutError(
            f"pipeline-model-parallel-layout has {len(layout)} {noun} but there are pipeline-model-parallel-size x "
            f"virtual stages ({pp} x {chunks})",
            otherwise=f"give {pp * chunks} {'numbers' if noun == 'entries' else noun}",
        )
    if any(layers < 0 for layers in layout):
        raise CutError(
            f"pipeline-model-parallel-layout ({words}) has a negative entry",
            otherwise="use 0 or more layers",
        )
    if sum(layout) != num_layers:
        raise CutError(
            f"pipeline-model-parallel-layout ({words}) sums to {sum(layout)} but num-layers is {num_layers}",
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


def _require_nothing_else(
    embedding: bool, first: int | None, last: int | None, layout: Sequence[int] | str | None
) -> None:
    """Raises: CutError if the stages are given in another way, too."""
    given = {
        "decoder-first-pipeline-num-layers": first,
        "decoder-last-pipeline-num-layers": last,
        "pipeline-model-parallel-layout": layout,
    }
    what = "embedding" if embedding else "loss"
    for name, value in given.items():
        if value is not None:
            raise CutError(
                f"account-for-{what}-in-pipeline-split divides the layers evenly, but {name} ({value}) sets them "
                "by hand",
                otherwise="remove one of them",
            )


def _even_with_ends(
    num_layers: int, pp: int, chunks: int, embedding: bool, loss: bool
) -> list[int]:
    """Equal stages, of whose layers the embedding is the first and the output layer the last."""
    pieces = pp * chunks
    counted = num_layers + embedding + loss
    if counted % pieces:
        rows = near_multiples(counted, pieces)
        layers = [[value - embedding - loss for value in row] for row in rows]
        counts = [count for count in divisors_near(counted, pieces) if count % chunks == 0]
        what = " + ".join(["the embedding"] * embedding + ["the output layer"] * loss)
        raise CutError(
            f"num-layers ({num_layers}) + {what} ({counted} in all) must be divisible by pipeline-model-parallel-size "
            f"x virtual stages ({pp} x {chunks})",
            Remedy("num_layers", [[value for value in row if value > 0] for row in layers]),
            Remedy("pipeline_model_parallel_size", each([count // chunks for count in counts])),
            otherwise="set the layers of each stage with pipeline-model-parallel-layout",
        )
    cut = [counted // pieces] * pieces
    cut[0] -= embedding
    cut[-1] -= loss
    return cut


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
