"""The laws of recomputation; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.remedies import Broken, Remedy


def details_are_for_full(
    recompute_granularity: str, recompute_method: str | None, recompute_num_layers: int | None
) -> str | None:
    """Method and number of layers apply only to full recomputation."""
    details = {"recompute-method": recompute_method, "recompute-num-layers": recompute_num_layers}
    given = [f"{name} ({value})" for name, value in details.items() if value is not None]
    if recompute_granularity == "full" or not given:
        return None
    return (
        f"{' and '.join(given)} needs recompute-granularity full, not {recompute_granularity}: use full, or remove it"
    )


def layers_are_there_to_recompute(recompute_num_layers: int, num_layers: int) -> Broken | None:
    """A group of layers is not larger than the model."""
    if recompute_num_layers <= num_layers:
        return None
    return Broken(
        f"recompute-num-layers ({recompute_num_layers}) must not exceed num-layers ({num_layers})",
        [Remedy("recompute_num_layers", [[num_layers]], " or less")],
    )


LAWS: list[Callable[..., str | Broken | None]] = [details_are_for_full, layers_are_there_to_recompute]
