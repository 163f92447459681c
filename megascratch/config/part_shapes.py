"""What a registered part must look like, checked when it is registered, so that an error names the user's own line."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from megascratch.config.errors import UserError


class PartShape(NamedTuple):
    """How a part of one kind is called."""

    call: str
    """For a message, after the name: '(hidden_size, epsilon, bias=..., grad_sum=...)'."""
    positional: int
    """Arguments that are given by position."""
    keywords: tuple[str, ...] = ()
    methods: Mapping[str, int] = {}
    """Of a class: method -> arguments that are given by position, without self."""
    attributes: tuple[str, ...] = ()
    """Of a class."""

    @property
    def is_class(self) -> bool:
        return bool(self.methods)


_SUBLAYER = PartShape("(model, site)", 2, methods={"forward": 2})
SHAPES: Mapping[str, PartShape] = {
    "norm": PartShape(
        "(hidden_size, epsilon, bias=..., grad_sum=...)", 2, ("bias", "grad_sum"), {"forward": 1}
    ),
    "activation": PartShape("(x)", 1),
    "mixer": _SUBLAYER,
    "feed_forward": _SUBLAYER,
    "optimizer": PartShape(
        "(stretches, optim)", 2, methods={"step": 1}, attributes=("state_names", "steps")
    ),
    "lr_curve": PartShape("(done)", 1),
    "schedule": PartShape("(rank, ranks, microbatches, chunks, group)", 5),
    "data_order": PartShape("(lengths, samples, seed, epoch)", 4),
    "tokenizer": PartShape("(path)", 1),
    "sink": PartShape("(run)", 1, methods={"add": 1, "close": 1}),
}
HAVE_OPTIONS = ("norm", "activation", "mixer", "feed_forward", "optimizer", "lr_curve")
"""Kinds whose further keyword parameters are set by `layer_options` or `optimizer_options`."""


def require_shape(kind: str, words: str, name: str, value: Any) -> None:
    """Raises: UserError if a part cannot be called as parts of its kind are.

    Args:
        words: the kind, for a message.
    """
    shape = SHAPES[kind]
    part = f"the {words} {name}"
    if shape.is_class and not inspect.isclass(value):
        raise UserError(f"{part} must be a class, not {type(value).__name__}")
    if not callable(value):
        raise UserError(f"{part} must be a function, not {type(value).__name__}")
    for method, arguments in shape.methods.items():
        _require_method(part, value, method, arguments)
    for attribute in shape.attributes:
        if not hasattr(value, attribute):
            raise UserError(f"{part} has no {attribute}: see megascratch.optim.optimizer.Optimizer")
    if "state_names" in shape.attributes:
        _require_state_names(part, value.state_names)
    missing = sorted(getattr(value, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{part} does not define {', '.join(missing)}")
    signature = _signature(value)
    if signature is None:
        return  # written in C: nothing is known of its arguments
    required = {option.name for option in own_parameters(kind, value) if _is_required(option)}
    if required and kind not in HAVE_OPTIONS:
        raise UserError(f"{part} has the parameter {sorted(required)[0]}: give it a default")
    given = dict.fromkeys((*shape.keywords, *required))
    try:
        signature.bind(*[None] * shape.positional, **given)
    except TypeError as error:
        raise UserError(f"{part} must accept {name}{shape.call}: {error}") from error


def own_parameters(kind: str, value: Any) -> list[inspect.Parameter]:
    """The keyword-only parameters of a part beyond those that every part of its kind has."""
    signature = _signature(value)
    if signature is None:
        return []
    own = []
    for parameter in signature.parameters.values():
        is_keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if is_keyword and parameter.name not in SHAPES[kind].keywords:
            own.append(parameter)
    return own


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _signature(value: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(value)
    except (TypeError, ValueError):
        return None


def _require_method(part: str, value: type, method: str, arguments: int) -> None:
    function = inspect.getattr_static(value, method, None)
    inherited = getattr(getattr(value, method, None), "__qualname__", "")
    if function is None or inherited == "_forward_unimplemented":  # what torch.nn.Module has
        raise UserError(f"{part} has no method {method}")
    signature = _signature(getattr(value, method))
    if signature is None:
        return
    try:
        signature.bind(*[None] * (arguments + 1))
    except TypeError as error:
        wanted = {1: "one argument", 2: "two arguments"}[arguments]
        raise UserError(
            f"{part}: {method} must accept {wanted} in addition to self: {error}"
        ) from error


def _require_state_names(part: str, found: Any) -> None:
    is_names = isinstance(found, tuple | list) and all(isinstance(name, str) for name in found)
    if not is_names or "master" in found or len(set(found)) != len(found):
        raise UserError(
            f"{part}: state_names ({found!r}) must be different names, such as ('momentum',), none of them 'master'"
        )
