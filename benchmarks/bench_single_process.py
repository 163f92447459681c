"""A toolkit must cost nothing: tokens/s of a whole training step in one process, beside plain_gpt.py of the same shape.

Both train (forward, backward, clip, AdamW) on the same batches with the same threads, in turn in one process, whose
memory is kept as `pretrain` keeps it: that helps both.
"""

import argparse
import os

import torch
from alternate import alternate
from plain_gpt import PlainTrainer

from megascratch.config.derive import derive
from megascratch.config.fields import with_fields
from megascratch.config.settings import Config
from megascratch.data.batch import Batch
from megascratch.parallel.mesh import Mesh
from megascratch.training.hardware import keep_freed_memory
from megascratch.training.trainer import Trainer

SHAPES = {  # layers, width, heads, positions, vocabulary, batch
    "nanoGPT's CPU shape": (4, 128, 4, 64, 65, 12),
    "GPT-2 small, 256 tokens": (12, 768, 12, 256, 50304, 2),
}


def trainer_of(layers: int, width: int, heads: int, positions: int, vocab: int, batch: int) -> Trainer:
    settings = {
        "num_layers": layers, "hidden_size": width, "num_attention_heads": heads, "seq_length": positions,
        "vocab_size": vocab, "make_vocab_size_divisible_by": 1, "micro_batch_size": batch, "add_bias_linear": False,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "lr": 1e-3, "adam_beta2": 0.99, "weight_decay": 0.1,
    }  # fmt: skip
    return Trainer(derive(with_fields(Config(), settings), 1), Mesh.alone())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for name, shape in SHAPES.items():
        positions, vocab, size = shape[3:]
        ours, theirs = trainer_of(*shape), PlainTrainer(*shape[:5])
        tokens = torch.randint(0, vocab, (size, positions + 1), generator=torch.Generator().manual_seed(0))
        ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        places = torch.arange(positions).expand(size, -1)
        batch = Batch(ids, labels, torch.ones(size, positions), places, None, torch.arange(size))
        pair = alternate(
            lambda ours=ours, batch=batch: ours.train_step([batch], 1e-3).global_loss,
            lambda theirs=theirs, ids=ids, labels=labels: theirs.step(ids, labels),
            args.rounds if vocab < 1000 else max(5, args.rounds // 3),
        )
        print(f"{name:<26} {args.threads} threads   {pair}", flush=True)


if __name__ == "__main__":
    main()
