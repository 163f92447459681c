"""The loss in pieces beside the loss of all tokens at once: time and memory of a step with a large vocabulary.

    python benchmarks/bench_chunked_loss.py

Forward and backward of a model of one layer, hidden size 256 and a vocabulary of 128,256, on one sample of 8,192
tokens, in one process with one thread, fp32. Both sides begin with the same weights, and it ends with code 1 where the
losses are not the same. Memory is what the resident set grew to above weights and gradients.
"""

import argparse

import torch
from alternate import Pair, alternate
from ranks import _resident, fresh
from same_work import Losses, first_losses, require_same_work

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import collate
from megascratch.parallel.mesh import Mesh
from megascratch.training.trainer import Trainer

VOCABULARY = 128256
LENGTH = 8192


class Side:
    def __init__(self, rows: int | None):
        settings = {
            "num_layers": 1,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "seq_length": LENGTH,
            "position_embedding_type": "rope",
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "micro_batch_size": 1,
            "global_batch_size": 1,
            "loss_chunk_rows": rows,
        }
        self.trainer = Trainer(resolve(with_fields(Config(), settings), 1), Mesh.alone())
        tokens = torch.randint(
            0, VOCABULARY, (LENGTH + 1,), generator=torch.Generator().manual_seed(0)
        )
        self.batch = collate([tokens.numpy()], range(1), LENGTH, None)

    def step(self) -> float:
        return self.trainer.global_loss(self.trainer.train_step([self.batch], 1e-3).loss)


def above(rows: int | None) -> int:
    """On a fresh process: bytes by which the second step grew the resident set at most."""
    from pathlib import Path

    side = Side(rows)
    side.step()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    side.step()
    return _resident("VmHWM") - before


def speed(rows: int, rounds: int) -> tuple[Losses, Pair]:
    ours, theirs = Side(rows), Side(None)
    losses = first_losses(ours.step, theirs.step, 2)
    return losses, alternate(ours.step, theirs.step, rounds, warmup=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=512, help="tokens whose logits exist at once")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pieces, whole = fresh(above, args.rows)[0], fresh(above, None)[0]
    print(
        f"MiB above weights and gradients: in pieces {pieces / 2**20:.0f}, at once {whole / 2**20:.0f}, "
        f"{pieces / whole:.2f} of it",
        flush=True,
    )
    torch.set_num_threads(1)
    losses, pair = speed(args.rows, args.rounds)
    require_same_work("", losses)
    print(f"{LENGTH / pair.ours:.0f} tokens/s   {pair}")


if __name__ == "__main__":
    main()
