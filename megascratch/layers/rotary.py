"""The angles of rotary position embedding (RoPE; Su et al. 2021, arXiv 2104.09864); `kernels/rotary.py` rotates.

Uses the convention of Llama: dims i and i + d/2 rotate together.
"""

import torch
from torch import Tensor

from megascratch.parallel.device_kind import widest_dtype


def rotary_angles(
    positions: Tensor, dims: int, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of positions [b, s]: [s, b, 1, dims], where dims i and i + dims/2 have the same
    angle, and [s, b, 1, dims/2]."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    widest = widest_dtype(positions.device)
    even_dims = torch.arange(0, dims, 2, device=positions.device, dtype=widest)
    frequency = base ** (-even_dims / dims)  # [dims/2]
    position = positions.t().to(widest)[..., None, None]  # [s, b, 1, 1]
    angle = (position * frequency).to(wide)  # [s, b, 1, dims/2]
    cos = angle.cos().to(dtype)
    sin = angle.sin().to(dtype)
    return torch.cat((cos, cos), -1), sin
