"""The Llama of 25 M parameters that the multi-rank benchmarks train on both sides: megascratch's settings for it, and
the same model from torch's own pieces, with the same initial weights.

Llama 3.2's proportions (an MLP 4 times as wide as the stream, RMSNorm, rotary positions, SwiGLU, no biases), an output
matrix of its own. The layers of `Llama` carry the names that torchtitan gives them, so that its plans for DTensor, DDP
and torch.distributed.pipelining fit.
"""

import torch
import torch.nn.functional as F
from same_work import copy_weights, initial_weights
from torch import Tensor, nn

from megascratch.config.fields import with_fields
from megascratch.config.resolve import resolve
from megascratch.config.settings import Config
from megascratch.data.samples.batch import Batch, collate

LAYERS = 8
WIDTH = 384
HEADS = 6
MLP_WIDTH = 1536
VOCAB = 8192
SEQUENCE = 256
LR = 1e-3
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
SETTINGS = {  # of the model and of AdamW; a layout's own settings come on top
    "num_layers": LAYERS,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": MLP_WIDTH,
    "vocab_size": VOCAB,
    "make_vocab_size_divisible_by": 1,
    "seq_length": SEQUENCE,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "untie_embeddings_and_output_weights": True,
    "lr": LR,
    "adam_beta1": BETAS[0],
    "adam_beta2": BETAS[1],
    "weight_decay": WEIGHT_DECAY,
    "clip_grad": CLIP,
}

NAMES = {  # megascratch's -> these
    "embedding.word.weight": ["tok_embeddings.weight"],
    "layers.{}.norm1.weight": ["layers.{}.attention_norm.weight"],
    "layers.{}.attention.qkv.weight": [
        f"layers.{{}}.attention.{name}.weight" for name in ("wq", "wk", "wv")
    ],
    "layers.{}.attention.proj.weight": ["layers.{}.attention.wo.weight"],
    "layers.{}.norm2.weight": ["layers.{}.ffn_norm.weight"],
    "layers.{}.mlp.fc1.weight": [
        f"layers.{{}}.feed_forward.{name}.weight" for name in ("w1", "w3")
    ],
    "layers.{}.mlp.fc2.weight": ["layers.{}.feed_forward.w2.weight"],
    "final_norm.weight": ["norm.weight"],
    "head.weight": ["output.weight"],
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [b, s, h] -> the same
        q, k, v = (  # under tensor parallelism a rank has some of the heads
            linear(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for linear in (self.wq, self.wk, self.wv)
        )
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        return self.wo(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, MLP_WIDTH, bias=False) for _ in range(2))
        self.w2 = nn.Linear(MLP_WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH, 1e-5)
        self.ffn_norm = nn.RMSNorm(WIDTH, 1e-5)
        self.attention = Attention()
        self.feed_forward = FeedForward()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Ids [b, s] -> logits [b, s, v]; or, as a stage of a pipeline, only the blocks in `layers`: hidden states
    [b, s, h] come in unless it is `first`, and go out unless it is `last`."""

    def __init__(self, layers: range = range(LAYERS), first: bool = True, last: bool = True):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, WIDTH) if first else None
        self.layers = nn.ModuleDict({str(i): Block() for i in layers})
        self.norm = nn.RMSNorm(WIDTH, 1e-5) if last else None
        self.output = nn.Linear(WIDTH, VOCAB, bias=False) if last else None
        half = WIDTH // HEADS // 2
        angle = torch.arange(SEQUENCE)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        copy_weights(initial_weights(resolve(with_fields(Config(), SETTINGS), 1)), self, NAMES)

    def forward(self, x: Tensor) -> Tensor:
        if self.tok_embeddings is not None:
            x = self.tok_embeddings(x)
        for block in self.layers.values():
            x = block(x, self.cos, self.sin)
        return x if self.output is None else self.output(self.norm(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; x [b, n, s, d], angles [s, d/2]; dims i and i + d/2 turn together."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the tokens."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """torch's fastest AdamW; matrices decay, norms do not."""
    matrices = [w for w in model.parameters() if w.dim() > 1]
    vectors = [w for w in model.parameters() if w.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=LR, betas=BETAS, fused=True)


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and labels, each [count, s]."""
    tokens = torch.randint(
        0, VOCAB, (count, SEQUENCE + 1), generator=torch.Generator().manual_seed(seed)
    )
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def batches(ids: Tensor, labels: Tensor, micro_batch_size: int) -> list[Batch]:
    """The same samples as megascratch's micro-batches."""
    tokens = torch.cat((ids, labels[:, -1:]), 1).numpy()
    found = []
    for first in range(0, len(tokens), micro_batch_size):
        some = tokens[first : first + micro_batch_size]
        found.append(collate(list(some), range(first, first + len(some)), SEQUENCE, None))
    return found
