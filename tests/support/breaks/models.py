"""Breaks of what a model computes for flags of Megatron-LM; each with the model of `megatron_model.py` whose loss or
gradient must tell."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from megascratch.config import layers
from megascratch.layers.kernels import rotary
from megascratch.layers.kernels.norms import layer_norm
from megascratch.layers.norm import LayerNorm
from megascratch.model import chunk
from tests.support.breaks.replacing import after
from tests.support.megatron_model import VOCABULARY, the_model_is_that_of_megatron_core

Law = Callable[[Path, Callable], None]


@cache
def model(name: str) -> Law:
    return lambda folder, run: the_model_is_that_of_megatron_core(name)


def always_halves(dims, interleaved):
    return plain_pairs(dims, False)


def without_interpolation(positions, rope, *rest):
    return plain_angles(positions, replace(rope, interpolation=1.0), *rest)


def biases_of_linear_layers(model):
    return plain_norm_of(replace(model, norm_bias=model.add_bias_linear))


def without_padding(head):
    head.valid = VOCABULARY


def weight_is_the_factor(self, x):
    return layer_norm(x, self.weight, self.bias, self.epsilon)


plain_pairs = rotary._pairs
plain_angles = chunk.rotary_angles
plain_norm_of = layers.norm_of

INTERLEAVED = "interleaved rotary positions of half a head"
NORM_BIASES = "norm biases without linear biases"

MODELS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "interleaved rotary positions turn the halves of a head": (
        [(rotary, "_pairs", always_halves)],
        model(INTERLEAVED),
    ),
    "positions are not interpolated": (
        [(chunk, "rotary_angles", without_interpolation)],
        model("interpolated rotary positions of another base"),
    ),
    "blocks have the norm biases of linear layers": (
        [(layers, "norm_of", biases_of_linear_layers)],
        model(NORM_BIASES),
    ),
    "the last norm has the bias of linear layers": (
        [(chunk, "norm_of", biases_of_linear_layers)],
        model(NORM_BIASES),
    ),
    "padding rows that are trained stay out of the softmax": (
        [(chunk.Head, "__init__", after(chunk.Head.__init__, without_padding))],
        model("padding rows of the vocabulary in the softmax"),
    ),
    "a weight stored minus one is the factor": (
        [(LayerNorm, "forward", weight_is_the_factor)],
        model("weights of norms stored minus one"),
    ),
}
