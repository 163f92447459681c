"""Breaks of which layer is of which kind, in a model whose layers are not alike (`other_layers.pattern`).

A rank builds its layers from a list of the whole model; the mistake is to take them from a list of its own.
"""

from dataclasses import replace
from unittest.mock import patch

from megascratch.model import build, chunk
from megascratch.model.chunk import ModelChunk
from tests.support.breaks.replacing import INTERLEAVED, PP2, ROTARY, Break
from tests.support.other_layers import with_other_layers


def ropes_from_the_first(model, layers, *rest):
    """Layer 3 of a stage that begins with layer 2 has the rope of layer 1; a kind with other weights is refused."""
    whole = chunk.layers_of(model)
    moved = list(whole)
    for layer in layers:
        mixer, other = whole[layer].mixer, whole[layer - layers.start].mixer
        if mixer.kind == other.kind == "attention":
            moved[layer] = replace(whole[layer], mixer=replace(mixer, rope=other.rope))
    with patch.object(chunk, "layers_of", lambda model: tuple(moved)):
        return ModelChunk(model, layers, *rest)


def scale_of_its_own_layers(model, layers, *rest):
    """The residual stream of a stage keeps its scale, that of the whole model does not."""
    scaled = tuple(
        replace(layer, output_std=layer.std / (2 * len(layers)) ** 0.5)
        for layer in chunk.layers_of(model)
    )
    with patch.object(chunk, "layers_of", lambda model: scaled):
        return ModelChunk(model, layers, *rest)


def angles_of_the_first_kind(self, positions):
    angles = plain_rotary(self, positions)
    return dict.fromkeys(angles, next(iter(angles.values()), None))


def layers_without_the_ends(model, parallel, stages):
    """The first stage forgets that the embedding counts, and so it has one layer more than its place."""
    first, *others = plain_stages(model, parallel, stages)
    return [range(first.start, first.stop + 1), *others]


plain_stages = build.layers_of_stages
plain_rotary = ModelChunk.rotary

BREAKS: dict[str, Break] = {
    "the embedding counts as a layer for all stages but its own": Break(
        {
            "pipeline_model_parallel_size": 3,
            "num_layers": 4,
            "account_for_embedding_in_pipeline_split": True,
            "account_for_loss_in_pipeline_split": True,
        },
        [(build, "layers_of_stages", layers_without_the_ends)],
    ),
    "a layer's kind by its number on its stage": Break(
        {"pipeline_model_parallel_size": 4, "num_layers": 4},
        [(build, "ModelChunk", ropes_from_the_first)],
        with_other_layers,
    ),
    "a layer's kind by its number in its chunk": Break(
        INTERLEAVED,
        [(build, "ModelChunk", ropes_from_the_first)],
        with_other_layers,
    ),
    "residual scale of the layers of one stage": Break(
        PP2, [(build, "ModelChunk", scale_of_its_own_layers)]
    ),
    "all layers of a stage turn by the angles of its first": Break(
        {**PP2, **ROTARY, "decoder_first_pipeline_num_layers": 3, "num_layers": 4},
        [(ModelChunk, "rotary", angles_of_the_first_kind)],
        with_other_layers,
    ),
}
