"""What a deliberate break is, and the replacements that several of them share."""

from collections.abc import Callable
from typing import Any, NamedTuple

from megascratch.parallel.pending import Pending
from tests.support import layout_runs

TP2 = {"tensor_model_parallel_size": 2}
SP = {**TP2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
DP2 = {"data_parallel_size": 2}
ZERO1 = {**DP2, "use_distributed_optimizer": True}
INTERLEAVED = {**PP2, "num_virtual_stages_per_pipeline_rank": 2, "num_layers": 4}
ROTARY = {"position_embedding_type": "rope"}
UNTIED = {"untie_embeddings_and_output_weights": True}
DOCUMENTS = {"reset_position_ids": True, "reset_attention_mask": True}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}


class Break(NamedTuple):
    """Replacements (where, attribute, new value), the settings of the layout that must notice, and what each rank runs
    there: `run(config, steps) -> RankTrace`."""

    settings: dict[str, Any]
    replacements: list[tuple[Any, str, Any]]
    run: Callable = layout_runs.train_on_rank


def nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of a step that has no result."""


def own_value(x, axis, *rest):
    return x


def own_part(x, axis):
    return x.chunk(axis.size)[axis.rank]


def own_part_repeated(x, axis, *rest):
    return x.repeat(axis.size, *(1,) * (x.dim() - 1))


def not_started(x, axis, *rest):
    return Pending("all_reduce", axis, None, x)


def after(plain, change):
    """A constructor that is followed by `change(self)`."""

    def __init__(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        change(self)

    return __init__


def setting(plain, **attributes):
    """A constructor that sets attributes afterwards."""
    return after(plain, lambda self: vars(self).update(attributes))
