"""A step lives on its mesh's device and nowhere else. On `meta`, where tensors have no content, nothing can be computed
with one that strays to the CPU: so what a GPU would refuse shows without a GPU."""

from typing import Any

import pytest
import torch

from megascratch.layers.kernels import dropout
from megascratch.parallel.mesh import Mesh
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.pairwise_cover import DOCUMENTS, GPT, LLAMA, MEGATRON, PARTLY_ROTARY

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.2}
KINDS: dict[str, dict[str, Any]] = {
    "gpt": {**GPT, **DROPOUT},
    "llama, untied": {**LLAMA, "untie_embeddings_and_output_weights": True},
    "partly rotary": {**PARTLY_ROTARY, **DROPOUT, "micro_batch_size": 4},
    "interleaved rotary, norms stored minus one": MEGATRON,
    "documents, selective recomputation": {
        **LLAMA,
        **DOCUMENTS,
        **DROPOUT,
        "recompute_granularity": "selective",
    },
    "full recomputation": {
        **DROPOUT,
        "recompute_granularity": "full",
        "use_distributed_optimizer": True,
    },
}
PRECISIONS = {"fp64": {}, "fp32": {"fp64": False}, "bf16": {"fp64": False, "bf16": True}}


def step_on_meta(**settings: Any) -> Trainer:
    """Two steps of two micro-batches and an evaluation."""
    size = settings.get("micro_batch_size", 1)
    config = config_of(**settings, num_layers=2, global_batch_size=2 * size)
    trainer = Trainer(config, Mesh.alone("meta"))
    batches = [synthetic_batch(config, range(start, start + size)) for start in (0, size)]
    for step in (1, 2):
        trainer.train_step(batches, 1e-2, step)
    trainer.evaluate(batches[:1])
    return trainer


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_step_lies_on_its_device(kind, precision):
    trainer = step_on_meta(**KINDS[kind], **PRECISIONS[precision])
    assert all(held.tensor.is_meta for held in trainer.held())


def test_a_tensor_that_strays_is_found(monkeypatch):
    keys = dropout.sample_keys
    monkeypatch.setattr(
        dropout, "sample_keys", lambda seed, site, ids: keys(seed, site, torch.arange(len(ids)))
    )
    with pytest.raises(RuntimeError, match=r"device"):
        step_on_meta(**DROPOUT)
