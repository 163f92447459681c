"""Packed documents: attention in pieces beside a dense mask, in whole training steps of the same 25 M Llama.

    python benchmarks/bench_packed_attention.py

Both sides are one process with one thread, in fp32, and see the same samples of four documents each, whose tokens see
their own document alone. The other side gives torch's attention a mask of [s, s] in every layer, as this project did
before. They begin with the same weights, and it ends with code 1 where the losses are not the same. Memory is what the
resident set grew to above weights and gradients, in processes of their own, for several lengths.
"""

import argparse
from unittest.mock import patch

import llama_25m as llama
import torch
import torch.nn.functional as F
from alternate import Pair, alternate
from ranks import fresh, memory, mib
from same_work import Losses, first_losses, require_same_work
from torch import Tensor

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import Batch, collate
from megascratch.layers import attention
from megascratch.layers.kernels.attention import Scores
from megascratch.layers.visible import Visible
from megascratch.parallel.mesh import Mesh
from megascratch.training.trainer import Trainer

EOD = 0


class Packed:
    """Steps of one sample of `length` tokens in `documents` documents of equal length."""

    def __init__(self, length: int, documents: int, dense: bool):
        settings = llama.SETTINGS | {
            "seq_length": length,
            "reset_attention_mask": True,
            "reset_position_ids": True,
            "micro_batch_size": 1,
            "global_batch_size": 1,
        }
        self.dense = dense
        self.trainer = Trainer(resolve(with_fields(Config(), settings), 1), Mesh.alone())
        self.batch = _sample(length, documents)

    def step(self) -> float:
        if not self.dense:
            return self._step()
        with patch.object(attention, "attend", attend_by_a_mask):
            return self._step()

    def _step(self) -> float:
        return self.trainer.global_loss(self.trainer.train_step([self.batch], llama.LR).loss)


def attend_by_a_mask(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    scores: Scores,
    sinks: Tensor | None = None,
) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible.dense)


def _sample(length: int, documents: int) -> Batch:
    stream = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, llama.VOCAB, (length + 1,), generator=stream)
    tokens[length // documents - 1 :: length // documents] = EOD
    return collate(
        [tokens.numpy()],
        range(1),
        length,
        EOD,
        reset_position_ids=True,
        reset_attention_mask=True,
    )


def speed(length: int, documents: int, rounds: int) -> tuple[Losses, Pair]:
    ours = Packed(length, documents, dense=False)
    theirs = Packed(length, documents, dense=True)
    losses = first_losses(ours.step, theirs.step, 3)
    return losses, alternate(ours.step, theirs.step, rounds, warmup=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 4096, 8192])
    args = parser.parse_args()
    torch.set_num_threads(1)
    losses, pair = speed(args.length, args.documents, args.rounds)
    name = f"{args.documents} documents in {args.length} tokens"
    require_same_work(f"{name}: ", losses)
    print(f"{name}: {args.length / pair.ours:.0f} tokens/s   {pair}", flush=True)
    for length in args.lengths:
        found = [
            fresh(memory, Packed, length, args.documents, dense)[:1] for dense in (False, True)
        ]
        print(
            f"{length:6} tokens: MiB in pieces {mib(found[0])}, with a mask {mib(found[1])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
