"""Finds which of a user's own parts makes layouts differ: runs the smallest layouts, one axis at a time, until one
differs, then exchanges one part after the other for one of the package until it does not.

The part that is found is a fact; the cause is a guess, the usual one for such an axis.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from megascratch.config.errors import SettingError
from megascratch.config.fields import flat
from megascratch.config.laws import validate
from megascratch.config.layout import Layout
from megascratch.config.registry import Kind, is_registered, words
from megascratch.config.resolve import Values
from megascratch.config.settings import ParallelConfig
from megascratch.verification.layouts import Case
from megascratch.verification.pool import Pool
from megascratch.verification.verify import Verdict, verify_case

STEPS = 2
MICRO_BATCHES = 2
LAYOUT = ParallelConfig()


class SmallLayout(NamedTuple):
    """A smallest layout that uses one more thing than those before it."""

    words: str
    settings: Values
    cause: str


SEQUENCE = SmallLayout(
    "sequence parallelism",
    {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "something that looks across tokens or counts them in the tensor, which has a part of them: the context says "
    "where they are",
)
AXES = [
    SmallLayout(
        "the same run again, in another process",
        {},
        "a random number that is not a function of sample, layer and position (torch's dropout: use "
        "megascratch.layers.dropout.Dropout), or something kept from one forward or one model to the next",
    ),
    SmallLayout(
        "two micro-batches in place of one",
        {"micro_batch_size": 1},
        "a number that is computed over several samples, or kept from the previous micro-batch",
    ),
    SmallLayout(
        "tensor parallelism",
        {"tensor_model_parallel_size": 2},
        "a mean or norm over the part of a split dim that one rank has, a weight that every rank has whole but that is "
        "used as a part, the output of split weights without a sum over tp (RowParallelLinear has it), or a Shard "
        'whose grad_sum is always ("tp",): the gradient of a whole weight is a part only under sequence parallelism',
    ),
    SEQUENCE,
    SmallLayout(
        "data parallelism",
        {"data_parallel_size": 2, "micro_batch_size": 1},
        "a number that is computed over the samples of a rank, or that depends on its number",
    ),
    SmallLayout(
        "ZeRO-1",
        {"data_parallel_size": 2, "micro_batch_size": 1, "use_distributed_optimizer": True},
        "an update that needs more than the stretch of weights that a rank has",
    ),
    SmallLayout(
        "pipeline parallelism",
        {"pipeline_model_parallel_size": 2, "micro_batch_size": 1},
        "something that counts the layers of this process: their number in the model is site.layer",
    ),
]

OF_AN_OPTIMIZER = (
    "an update of an element that depends on others: a stretch is any range of weights (set needs_whole_matrices if it "
    "is of whole matrices)"
)
NO_GRAD_SUM = (
    "a weight whose Shard lacks grad_sum: each rank sees a part of the sequence, and computes a part of its gradient. "
    "A norm gets grad_sum as an argument and passes it on"
)


class OwnPart(NamedTuple):
    """A registered part of the model, and the settings that put one of the package in its place."""

    kind: Kind
    name: str
    other: str
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{words(self.kind)} {self.name}"


def explain(failed: list[Verdict], precision: str, pool: Pool) -> list[str]:
    """At most five lines on which part is wrong, for the end of a report; none if no part is a user's own.

    Args:
        failed: the verdicts of layouts that differ.
    """
    smallest = min((verdict.case for verdict in failed), key=_ranks)
    own = own_parts(flat(smallest.config))
    if not own:
        return []
    for axis in AXES:
        for case in _cases_of(axis, smallest):
            verdict = verify_case(case, STEPS, precision, pool)
            if not verdict.passed:
                return _lines(own, axis.words, axis.cause, verdict, precision, pool)
    verdict = min((verdict for verdict in failed), key=lambda verdict: _ranks(verdict.case))
    cause = "none that is known: it needs more than one axis at a time"
    return _lines(own, "several axes at a time", cause, verdict, precision, pool)


def own_parts(settings: Values) -> list[OwnPart]:
    """The registered parts of a model and its optimizer."""
    found = []
    norm = settings["normalization"]
    if is_registered("norm", norm):
        found.append(OwnPart("norm", norm, "LayerNorm", {"normalization": "LayerNorm"}))
    activation = settings["activation_function"]
    if activation is not None and is_registered("activation", activation):
        gelu = {"activation_function": "gelu"}
        found.append(OwnPart("activation", activation, "gelu", gelu))
    patterns: list[tuple[Kind, str, str]] = [
        ("mixer", "mixers", "attention"),
        ("feed_forward", "feed_forwards", "mlp"),
    ]
    for kind, setting, other in patterns:
        pattern = settings[setting] or []
        for name in dict.fromkeys(pattern):
            if is_registered(kind, name):
                replaced = [other if each == name else each for each in pattern]
                found.append(OwnPart(kind, name, other, {setting: replaced}))
    optimizer = settings["optimizer"]
    if is_registered("optimizer", optimizer):
        adam = {"optimizer": "adam", "optimizer_options": None}
        found.append(OwnPart("optimizer", optimizer, "adam", adam))
    return found


def _ranks(case: Case) -> int:
    return Layout.of(case.config.parallel).world


def _cases_of(axis: SmallLayout, failed: Case) -> Iterator[Case]:
    """The layout of an axis for the model of a case; none if its sizes do not allow it."""
    layers = failed.config.model.num_layers
    settings = flat(failed.config) | vars(LAYOUT) | {"micro_batch_size": MICRO_BATCHES}
    settings |= {"global_batch_size": MICRO_BATCHES} | dict(axis.settings)
    if settings["pipeline_model_parallel_size"] > 1:
        settings["pipeline_model_parallel_layout"] = [layers - layers // 2, layers // 2]
    try:
        validate(settings, Layout.of_values(settings).world)
    except SettingError:
        return
    yield Case.of(settings)


def _lines(
    own: list[OwnPart], axis: str, cause: str, verdict: Verdict, precision: str, pool: Pool
) -> list[str]:
    guilty = []
    for part in own:
        settings = flat(verdict.case.config) | part.settings
        if part.kind == "norm" and not settings["add_bias_linear"]:
            settings["normalization"] = "RMSNorm"
        if verify_case(Case.of(settings), STEPS, precision, pool).passed:
            guilty.append(part)
    if guilty:
        title = " and the ".join(part.title for part in guilty)
        proof = f"with {guilty[0].other} in place of {guilty[0].name} it does not"
    else:
        title = " and the ".join(part.title for part in own)
        proof = "no exchange of one of them helps: more than one of them is wrong"
    if any(part.kind == "optimizer" for part in guilty):
        cause = OF_AN_OPTIMIZER
    elif cause == SEQUENCE.cause and "copy" in (verdict.message or ""):
        cause = NO_GRAD_SUM
    found = (verdict.message or "").split("; looks like")[0]
    if "gradients" in verdict.worst:
        found += f"; the farthest gradient is that of {verdict.worst['gradients'].tensor}"
    return [
        f"wrong: the {title}",
        f"  the smallest layout that differs: {verdict.case.name}; {proof}",
        f"  what differs: {found}",
        f"  what makes it differ: {axis}",
        f"  the usual cause: {cause}",
    ]
