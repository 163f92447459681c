"""The terms of the objective: each is a sum over tokens divided by the number of tokens that it counts (law 5).

The head returns the sum of the language-model term. Every other term is joined in the middle of the model
(`parallel/side_loss.py`); it counts its tokens here, on all stages, before the forward.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from megascratch.config.settings import ModelConfig
from megascratch.data.samples.batch import Batch
from megascratch.parallel.device_kind import widest_dtype

LANGUAGE_MODEL = "lm"


@dataclass(frozen=True)
class LossTerm:
    """One fraction of the objective."""

    name: str
    """Of its column in the log; no two terms share one."""
    coefficient: float
    """Its factor in the objective."""
    count: Callable[[Batch], Tensor]
    """The number of tokens of a micro-batch that it counts, a scalar in the widest type."""


def learned_tokens(batch: Batch) -> Tensor:
    """Counts the tokens whose label is learned."""
    return batch.loss_mask.sum(dtype=widest_dtype(batch.loss_mask.device))


def language_model(model: ModelConfig) -> tuple[LossTerm, ...]:
    """Cross-entropy of the next token, the same for every model."""
    return (LossTerm(LANGUAGE_MODEL, 1.0, learned_tokens),)


LOSS_TERMS: list[Callable[[ModelConfig], tuple[LossTerm, ...]]] = [language_model]
"""Which terms the settings of a model ask for; the language model is the first."""


def loss_terms(model: ModelConfig) -> tuple[LossTerm, ...]:
    """All terms of a model, the language model first."""
    terms: list[LossTerm] = []
    for terms_of in LOSS_TERMS:
        terms += terms_of(model)
    return tuple(terms)
