"""The angles of rotary position embedding (RoPE; Su et al. 2021, arXiv 2104.09864); `kernels/rotary.py` rotates, and
`rope_kinds.py` has the frequencies of longer samples.

Two dims rotate together: i and i + d/2 as in Llama, or 2i and 2i + 1 (interleaved) as in the paper.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megascratch.config.layers import RopeSpec
from megascratch.layers.rope_kinds import attention_factor, frequencies
from megascratch.parallel.device_kind import widest_dtype


def rotary_angles(
    positions: Tensor, rope: RopeSpec, dtype: torch.dtype, lengths: Sequence[int] = (1,)
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of positions [b, s]: [s, b, 1, dims], where dims that rotate together have the same
    angle, and [s, b, 1, dims/2]. Positions are divided by the interpolation factor (Chen et al. 2023, arXiv
    2306.15595).

    Args:
        lengths: tokens of each sample, or one number for all; only some kinds of scaling read them.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    widest = widest_dtype(positions.device)
    even_dims = torch.arange(0, rope.dims, 2, device=positions.device, dtype=widest)
    frequency = frequencies(rope, lengths, even_dims)  # [dims/2] or [b, 1, dims/2]
    position = positions.t().to(widest)[..., None, None]  # [s, b, 1, 1]
    angle = (position / rope.interpolation * frequency).to(wide)  # [s, b, 1, dims/2]
    cos = angle.cos()
    sin = angle.sin()
    factor = attention_factor(rope)
    if factor != 1:
        cos = cos * factor
        sin = sin * factor
    cos = cos.to(dtype)
    sin = sin.to(dtype)
    if rope.interleaved:
        return cos.repeat_interleave(2, -1), sin
    return torch.cat((cos, cos), -1), sin
