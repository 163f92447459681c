"""A step lives on its mesh's device and nowhere else. On `meta`, where tensors have no content, nothing can be computed
with one that strays to the CPU: so what a GPU would refuse shows without a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megascratch.layers.kernels import dropout
from megascratch.model import build
from megascratch.parallel.mesh import Mesh
from megascratch.training.hardware import parameter_dtype
from megascratch.training.trainer import Trainer
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.pairwise_cover import DOCUMENTS, GPT, LLAMA, PARTLY_ROTARY

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.2}
KINDS: dict[str, dict[str, Any]] = {
    "gpt": {**GPT, **DROPOUT},
    "llama, untied": {**LLAMA, "untie_embeddings_and_output_weights": True},
    "partly rotary": {**PARTLY_ROTARY, **DROPOUT, "micro_batch_size": 4},
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


def told(tensor: Tensor) -> list[Any]:
    """A one and zeros, in the tensor's shape: a loss that is finite, and tied weights that no stage has frozen."""
    numbers = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    numbers[0] = 1
    listed: list[Any] = numbers.numpy().tolist()
    return listed


def step_on_meta(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Trainer:
    """Two steps and an evaluation; what asks for a tensor's content is told a number."""
    config = config_of(**settings, num_layers=2)
    chunk_class = build.ModelChunk

    def born_there(*args: Any) -> torch.nn.Module:
        """Parameters that move to meta would lose their ties."""
        with torch.device("meta"):
            return chunk_class(*args).to(dtype=parameter_dtype(config.optim))

    monkeypatch.setattr(build, "ModelChunk", born_there)
    monkeypatch.setattr(Tensor, "item", lambda tensor: 1.0)
    monkeypatch.setattr(Tensor, "tolist", told)
    trainer, size = Trainer(config, Mesh.alone("meta")), config.training.micro_batch_size
    batches = [synthetic_batch(config, range(start, start + size)) for start in range(0, 8, size)]
    for step in (1, 2):
        trainer.train_step(batches, 1e-2, step)
    trainer.evaluate(batches[:1])
    return trainer


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_step_lies_on_its_device(kind, precision, monkeypatch):
    trainer = step_on_meta(monkeypatch, **KINDS[kind], **PRECISIONS[precision])
    assert all(held.tensor.is_meta for held in trainer.held())


def test_a_tensor_that_strays_is_found(monkeypatch):
    keys = dropout.sample_keys
    monkeypatch.setattr(
        dropout, "sample_keys", lambda seed, site, ids: keys(seed, site, torch.arange(len(ids)))
    )
    with pytest.raises(RuntimeError, match=r"device"):
        step_on_meta(monkeypatch, **DROPOUT)
