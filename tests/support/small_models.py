"""Small models, alone or trained for a step on a layout and saved: what generation and evaluation are tested on."""

from dataclasses import asdict, replace

import torch

from megascratch import checkpoint
from megascratch.config.fields import with_fields
from megascratch.config.layout import Layout
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import collate
from megascratch.model.build import build_chunks
from megascratch.model.chunk import ModelChunk, context_of
from megascratch.parallel.mesh import Mesh
from megascratch.tokenizer.simple import ByteTokenizer
from megascratch.training.trainer import Trainer
from tests.support.rank_pool import mesh_of

SMALL = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "seq_length": 24,
    "vocab_size": 257,
    "init_method_std": 0.4,
    "make_vocab_size_divisible_by": 8,
    "tokenizer_type": "ByteTokenizer",
    "hidden_dropout": 0.1,
    "fp64": True,
    "train_iters": 1,
}
KINDS = {
    "learned": {},
    "rotary": {
        "position_embedding_type": "rope",
        "num_query_groups": 2,
        "swiglu": True,
        "normalization": "RMSNorm",
    },
    "interleaved": {
        "position_embedding_type": "rope",
        "rotary_interleaved": True,
        "rotary_percent": 0.5,
        "apply_layernorm_1p": True,
    },
    "no positions": {
        "position_embedding_type": "none",
        "untie_embeddings_and_output_weights": True,
    },
}


def config_of(world: int = 1, **settings) -> Config:
    return resolve(with_fields(Config(), {**SMALL, **settings}), world)


def model_of(config: Config) -> ModelChunk:
    """With random weights, in fp64, for inference."""
    parallel = replace(config.parallel, num_virtual_stages_per_pipeline_rank=1)
    (chunk,) = build_chunks(config.model, parallel, Mesh.alone(), torch.float64, 5)
    return chunk.requires_grad_(False).eval()


def save_model(folder, tp: int = 1, pp: int = 1, dp: int = 1, settings=(), state=()):
    """On each rank of a layout: builds and saves. The weights do not depend on the layout (law 2)."""
    layout = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "use_distributed_optimizer": dp > 1,
    }
    config = config_of(Layout(tp, pp, dp).world, **layout, **dict(settings))
    mesh = mesh_of(tp, pp, dp)
    trainer = Trainer(config, mesh)
    saved = {
        "config": asdict(config),
        "tokenizer_fingerprint": ByteTokenizer().fingerprint,
        **dict(state),
    }
    return checkpoint.save(folder, 3, trainer.held(), saved, mesh.control)


def full_logits(config, model, ids, eod=None):
    """[s, v] of one sequence by the forward that training uses."""
    resets = {
        name: getattr(config.data, name) for name in ("reset_position_ids", "reset_attention_mask")
    }
    batch = collate([torch.tensor([*ids, 0]).numpy()], [0], len(ids), eod, **resets)
    hidden = model.hidden(None, batch.ids, context_of(batch))
    return model.head.logits(hidden)[:, : model.model.vocab_size]
