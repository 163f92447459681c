"""The laws of parts that a user registers: patterns of layers, and options; see `laws/__init__.py`."""

from collections.abc import Callable

from megascratch.config.part_options import PartName, parameters_of, problem_with


def a_pattern_has_a_layer_for_each_kind(
    num_layers: int, mixers: list[str] | None, feed_forwards: list[str] | None
) -> str | None:
    """A pattern that is longer than the model has kinds that no layer is of."""
    for setting, pattern in (("mixers", mixers), ("feed-forwards", feed_forwards)):
        if pattern is not None and not pattern:
            return f"{setting} is an empty list: name at least one kind, or remove it"
        if pattern and len(pattern) > num_layers:
            return (
                f"{setting} ({' '.join(pattern)}) is a pattern of {len(pattern)} layers, but num-layers is "
                f"{num_layers}: use {num_layers} kinds or fewer, or {len(pattern)} layers or more"
            )
    return None


def layer_options_belong_to_the_layers(
    layer_options: list[str] | None,
    normalization: str,
    activation_function: str | None,
    mixers: list[str] | None,
    feed_forwards: list[str] | None,
) -> str | None:
    """Each option is a parameter of a part in use, and each parameter without a default is given."""
    parts = [PartName("norm", normalization)]
    if activation_function is not None:
        parts.append(PartName("activation", activation_function))
    parts += [PartName("mixer", name) for name in dict.fromkeys(mixers or ())]
    parts += [PartName("feed_forward", name) for name in dict.fromkeys(feed_forwards or ())]
    return problem_with("layer-options", layer_options, parts)


def optimizer_options_belong_to_the_optimizer(
    optimizer_options: list[str] | None, optimizer: str, lr_decay_style: str
) -> str | None:
    """Each option is a parameter of the optimizer or of the learning-rate curve."""
    parts = [PartName("optimizer", optimizer), PartName("lr_curve", lr_decay_style)]
    return problem_with("optimizer-options", optimizer_options, parts)


def a_norm_can_store_its_weight_minus_one(
    normalization: str, apply_layernorm_1p: bool
) -> str | None:
    """A norm of your own says so by a parameter."""
    if not apply_layernorm_1p or normalization in ("LayerNorm", "RMSNorm"):
        return None
    names = [parameter.name for parameter in parameters_of(PartName("norm", normalization))]
    if "minus_one" in names:
        return None
    return (
        f"apply-layernorm-1p needs a norm that can store its weight minus one, and {normalization} has no keyword "
        "parameter minus_one: give it one, or use normalization LayerNorm or RMSNorm"
    )


LAWS: list[Callable[..., str | None]] = [
    a_pattern_has_a_layer_for_each_kind,
    layer_options_belong_to_the_layers,
    optimizer_options_belong_to_the_optimizer,
    a_norm_can_store_its_weight_minus_one,
]
