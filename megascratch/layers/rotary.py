"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves convention as in Llama: dims i and i + d/2
turn together.
"""

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, dims: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles; positions [b, s] -> two of [s, b, 1, dims/2]."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    frequency = base ** (-torch.arange(0, dims, 2, device=positions.device, dtype=torch.float64) / dims)
    angle = (positions.t().to(torch.float64)[..., None, None] * frequency).to(wide)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first 2 * cos.shape[-1] dims of each head; x [s, b, n, d]."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
