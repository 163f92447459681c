"""Options of Megatron-LM that contradict each other, where no law between settings can see it: one of them has become a
setting by then, or nothing. Megatron-LM stops at most of these, too.
"""

from collections.abc import Callable

from megascratch.config.megatron.layer_rules import (
    several_exchanges,
    unreadable_pattern,
    window_of_another_form,
)
from megascratch.config.megatron.rules import Options, counted_layers, number_of, words_of
from megascratch.config.remedies import choice, divisors


def no_positions(options: Options) -> str:
    """`--no-position-embedding` is the old way to say that another kind of positions has no table."""
    kind = words_of(options, "position-embedding-type")
    is_rope = "use-rotary-position-embeddings" in options or kind == ("rope",)
    if "no-position-embedding" not in options or is_rope or kind == ("none",):
        return ""
    return (
        "--no-position-embedding contradicts the table of learned positions: give --position-embedding-type rope or "
        "none, or remove the flag"
    )


def recomputation(options: Options) -> str:
    """`--recompute-activations` is the short form of one granularity."""
    granularity = words_of(options, "recompute-granularity")
    if "recompute-activations" not in options or granularity in ((), ("selective",)):
        return ""
    return (
        f"--recompute-activations is --recompute-granularity selective, but {' '.join(granularity)} is given as well: "
        "remove one"
    )


def ways_to_make_chunks(options: Options) -> str:
    """The number of chunks is said in one way."""
    given = [name for name in CHUNKS if name in options]
    if len(given) < 2:
        return ""
    return f"{' and '.join(f'--{name}' for name in given)} both say the virtual stages: keep one"


def layers_of_a_chunk(options: Options) -> str:
    """Virtual stages of equal length need stages of equal length."""
    name = "num-layers-per-virtual-pipeline-stage"
    per_chunk = number_of(options, name)
    if per_chunk is None:
        return ""
    for other in ("decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers"):
        if other in options:
            return f"--{name} needs equal stages, and --{other} is given: give --num-virtual-stages-per-pipeline-rank"
    layers = counted_layers(options)
    if layers is None:
        return f"--{name} needs --num-layers"
    stages = number_of(options, "pipeline-model-parallel-size") or 1
    if layers % stages or (per_chunk and layers // stages % per_chunk == 0):
        return ""  # of the first a law tells
    lengths = choice(divisors(layers // stages), near=per_chunk, most=4)
    return f"--{name} ({per_chunk}) must divide the {layers // stages} layers of a stage: use {lengths}"


CHUNKS = (
    "num-layers-per-virtual-pipeline-stage",
    "num-virtual-stages-per-pipeline-rank",
    "pipeline-model-parallel-layout",
)
"""Options that say the number of virtual stages."""

CONFLICTS: tuple[Callable[[Options], str], ...] = (
    no_positions,
    recomputation,
    ways_to_make_chunks,
    layers_of_a_chunk,
    unreadable_pattern,
    window_of_another_form,
    several_exchanges,
)


def contradictions(options: Options) -> list[str]:
    """One sentence for each contradiction."""
    found = [conflict(options) for conflict in CONFLICTS]
    return [sentence for sentence in found if sentence]
