"""The peer of bench_single_process.py: a GPT in plain PyTorch, one file, one process, nothing parallel.

What a good engineer writes by hand: fused q, k, v, scaled_dot_product_attention, cross_entropy, clip_grad_norm_ and
torch.optim.AdamW(fused=True) with decay groups; on CUDA autocast to bf16, and torch.compile of the whole if asked.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = {  # megascratch's -> these
    "embedding.word.weight": ["words.weight"],
    "embedding.position.weight": ["positions.weight"],
    "layers.{}.norm1.weight": ["blocks.{}.norm1.weight"],
    "layers.{}.attention.qkv.weight": ["blocks.{}.qkv.weight"],
    "layers.{}.attention.proj.weight": ["blocks.{}.proj.weight"],
    "layers.{}.norm2.weight": ["blocks.{}.norm2.weight"],
    "layers.{}.mlp.fc1.weight": ["blocks.{}.up.weight"],
    "layers.{}.mlp.fc2.weight": ["blocks.{}.down.weight"],
    "final_norm.weight": ["norm.weight"],
}


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (
            t.view(b, s, self.heads, -1).transpose(1, 2)
            for t in self.qkv(self.norm1(x)).split(h, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, s, h))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, positions: int, vocab: int):
        super().__init__()
        self.words = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.words.weight
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)
        for block in self.blocks:
            for last in (block.proj, block.down):  # GPT-2: the residual sum keeps its scale
                nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class PlainTrainer:
    """model + optimizer; `step` trains on one batch."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        positions: int,
        vocab: int,
        device: str = "cpu",
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        self.model = PlainGPT(layers, width, heads, positions, vocab).to(device, dtype)
        matrices = [w for w in self.model.parameters() if w.dim() > 1]
        vectors = [w for w in self.model.parameters() if w.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
        if compiled:
            self.model.compile()

    def step(self, ids: Tensor, labels: Tensor, lr: float = 1e-3) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = self.model(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()
