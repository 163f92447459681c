"""Rotary frequencies for samples that are longer than those that a model was first trained on.

    linear    positions divided by a factor (Chen et al. 2023, arXiv 2306.15595); `RopeSpec.interpolation`
    dynamic   a larger base, the longer the sample: NTK-aware scaling (bloc97 and emozilla 2023)
    llama3    low frequencies divided by the factor, with a ramp by wavelength (Llama 3.1; arXiv 2407.21783)
    yarn      the same with a ramp by turns, and larger scores (Peng et al. 2023, arXiv 2309.00071)
    longrope  a divisor of its own for each frequency, found by search, one set for short and one for long samples
              (Ding et al. 2024, arXiv 2402.13753)

dynamic and longrope depend on how long a sample is. In training and evaluation that is the length of the whole sample
(`seq_length`), wherever documents begin in it. In generation it is the number of tokens of the prompt and its
continuation so far, for each row of a batch on its own; where the frequencies change on the way, the keys of the cache
are computed again, so that every token is that of one forward over all tokens before it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from megascratch.config.layers import RopeScaling, RopeSpec


def length_class(rope: RopeSpec, length: int) -> int:
    """What the frequencies take of the number of tokens of a sample: where it is equal, they are."""
    scaling = rope.scaling
    if scaling is None or scaling.original_length is None:
        return 0
    if scaling.kind == "dynamic":
        return max(length, scaling.original_length)
    if scaling.kind == "longrope":
        return int(length > scaling.original_length)
    return 0


def frequencies(rope: RopeSpec, lengths: Sequence[int], even_dims: Tensor) -> Tensor:
    """Radians per position of every two dims that rotate together: [dims/2], or [b, 1, dims/2] where samples differ.

    Args:
        lengths: tokens of each sample, or one number for all.
        even_dims: [dims/2] 0, 2, 4 ... in the dtype of the result.
    """
    by_class = {length_class(rope, length): length for length in lengths}
    if len(by_class) == 1:
        return _of_length(rope, lengths[0], even_dims)
    each = [_of_length(rope, length, even_dims) for length in lengths]
    return torch.stack(each)[:, None]


def attention_factor(rope: RopeSpec) -> float:
    """What cosines and sines are multiplied by. Queries and keys both are, so scores grow by its square."""
    scaling = rope.scaling
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    assert scaling.factor is not None and scaling.original_length is not None
    if scaling.kind == "longrope":
        if scaling.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_length))
    if scaling.mscale is None or scaling.mscale_all_dim is None:
        return _growth(scaling.factor, 1.0)
    return _growth(scaling.factor, scaling.mscale) / _growth(scaling.factor, scaling.mscale_all_dim)


def _growth(factor: float, weight: float) -> float:
    """YaRN, section 3.4: by how much longer samples want larger scores."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _of_length(rope: RopeSpec, length: int, even_dims: Tensor) -> Tensor:
    """The frequencies [dims/2] in a sample of so many tokens."""
    if rope.scaling is None:
        return rope.base ** (-even_dims / rope.dims)
    return SCALED[rope.scaling.kind](rope, rope.scaling, length, even_dims)


def _dynamic(rope: RopeSpec, scaling: RopeScaling, length: int, even_dims: Tensor) -> Tensor:
    """At the original length the base is as it was."""
    assert scaling.factor is not None and scaling.original_length is not None
    longer = max(length, scaling.original_length) / scaling.original_length
    growth = scaling.factor * longer - (scaling.factor - 1)
    base = rope.base * growth ** (rope.dims / (rope.dims - 2))
    return base ** (-even_dims / rope.dims)


def _llama3(rope: RopeSpec, scaling: RopeScaling, length: int, even_dims: Tensor) -> Tensor:
    """A frequency stays by (turns - low) / (high - low), where `turns` are those within the original length."""
    assert scaling.factor is not None and scaling.original_length is not None
    frequency = rope.base ** (-even_dims / rope.dims)
    turns = frequency * (scaling.original_length / (2 * math.pi))
    low = scaling.low_freq_factor
    kept = ((turns - low) / (scaling.high_freq_factor - low)).clamp(0, 1)
    return frequency / scaling.factor * (1 - kept) + frequency * kept


def _yarn(rope: RopeSpec, scaling: RopeScaling, length: int, even_dims: Tensor) -> Tensor:
    """Dims with more than `beta_fast` turns in the original length stay, and those with fewer than `beta_slow` are
    divided by the factor; the ramp between them is over dims."""
    assert scaling.factor is not None and scaling.original_length is not None
    low, high = (
        _dim_with(turns, rope, scaling.original_length)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, rope.dims - 1)
    if low == high:
        high += 0.001  # as in the authors' code: a ramp has a width
    divided = ((even_dims / 2 - low) / (high - low)).clamp(0, 1)
    frequency = rope.base ** (-even_dims / rope.dims)
    return frequency / scaling.factor * divided + frequency * (1 - divided)


def _dim_with(turns: float, rope: RopeSpec, length: int) -> float:
    """The pair of dims (no whole number) that makes so many turns within a length: equation 17."""
    return rope.dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.base))


def _longrope(rope: RopeSpec, scaling: RopeScaling, length: int, even_dims: Tensor) -> Tensor:
    is_long = length_class(rope, length) == 1
    factors = scaling.long_factors if is_long else scaling.short_factors
    return rope.base ** (-even_dims / rope.dims) / even_dims.new_tensor(factors)


SCALED: Mapping[str, Callable[[RopeSpec, RopeScaling, int, Tensor], Tensor]] = {
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""`RopeScaling.kind` -> its frequencies."""
