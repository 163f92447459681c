"""What a rank holds of the state, told in global names and boxes: the only language between optimizer and checkpoint."""

from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.parallel.shard import Box


class Held(NamedTuple):
    """One block of one tensor of the state. `tensor` is a view: loading writes into it in place."""

    name: str  # of the whole, e.g. "param.layers.3.mlp.fc1.weight" or "optim.exp_avg.layers.3.mlp.fc1.weight"
    whole_shape: tuple[int, ...]  # without padding
    dtype: torch.dtype
    box: Box  # place in the whole
    tensor: Tensor  # of shape box.shape
    copy: int  # 0: this one is written; > 0: a replica, only read
