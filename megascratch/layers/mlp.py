"""The MLP of a block, with GELU, squared ReLU (So et al. 2021) or SwiGLU (Shazeer 2020); its width is split over tp."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from megascratch.config.settings import ModelConfig
from megascratch.layers.kernels.activations import gelu, swiglu
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.parallel.mesh import Axis
from megascratch.parallel.shard import Part


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def activation(model: ModelConfig) -> Callable[[Tensor], Tensor]:
    if model.swiglu:
        return swiglu
    if model.squared_relu:
        return squared_relu
    return partial(gelu, by_tanh=model.openai_gelu)


class MLP(nn.Module):
    def __init__(self, model: ModelConfig, tp: Axis, sequence_parallel: bool, output_std: float):
        super().__init__()
        width = model.ffn_hidden_size
        assert width is not None
        parts = (Part(width, width),) * (2 if model.swiglu else 1)
        self.fc1 = ColumnParallelLinear(
            model.hidden_size,
            width * len(parts),
            tp,
            parts=parts,
            bias=model.add_bias_linear,
            std=model.init_method_std,
            sequence_parallel=sequence_parallel,
        )
        self.fc2 = RowParallelLinear(
            width,
            model.hidden_size,
            tp,
            bias=model.add_bias_linear,
            std=output_std,
            sequence_parallel=sequence_parallel,
        )
        self.activation = activation(model)

    def forward(self, x: Tensor) -> Tensor:  # [s or s/tp, b, h] -> the same
        return self.fc2(self.activation(self.fc1(x)))
