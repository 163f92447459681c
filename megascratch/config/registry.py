"""The names that a setting may have as its value, and what users register under names of their own. Needs no torch.

    # my_layers.py, which `--import my_layers.py` runs in every process of a run
    import megascratch as ms

    @ms.register("norm", "ScaleNorm")
    class ScaleNorm(nn.Module): ...

The parts that come with the package are in literal tables, in the file of the thing (`NORMS` in `layers/norm.py`).
Their names are listed here, so that a setting can be checked without torch. `look_up` searches such a table, then what
was registered, then the entry points of installed packages: group `megascratch.KIND`, by name. An entry point is loaded
only if its name is asked for.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from megascratch.config.errors import UserError
from megascratch.config.part_shapes import require_shape

T = TypeVar("T")

Kind = Literal[
    "norm",
    "activation",
    "mixer",
    "feed_forward",
    "optimizer",
    "lr_curve",
    "schedule",
    "data_order",
    "tokenizer",
    "sink",
]

KINDS: tuple[Kind, ...] = get_args(Kind)

BUILT_IN: Mapping[Kind, tuple[str, ...]] = {
    "norm": ("LayerNorm", "RMSNorm"),
    "activation": (
        "gelu",
        "openai_gelu",
        "squared_relu",
        "swiglu",
        "geglu",
        "geglu_exact",
        "quick_geglu",
    ),
    "mixer": ("attention", "gated_delta_net"),
    "feed_forward": ("mlp",),
    "optimizer": ("adam",),
    "lr_curve": ("constant", "linear", "cosine", "inverse-square-root", "WSD"),
    "schedule": ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "dualpipe_v", "csv"),
    "data_order": ("keyed", "megatron"),
    "tokenizer": (
        "SentencePieceTokenizer",
        "HuggingFaceTokenizer",
        "GPT2BPETokenizer",
        "TikTokenizer",
        "CharTokenizer",
        "GPTSentencePieceTokenizer",
        "Llama2Tokenizer",
        "ByteTokenizer",
        "NullTokenizer",
    ),
    "sink": ("tensorboard", "wandb", "trackio", "otel", "none"),
}
"""Kind -> the names that come with the package."""

FACTS: Mapping[str, Mapping[str, Any]] = {
    "activation": {"inputs": 1},
    "schedule": {"chunks": 1, "folded": False},
}
"""Kind -> what the settings must know of a part, with its default.

inputs: the numbers per channel that an activation reads, 2 for a gate and a value
chunks: the model chunks per rank that a schedule needs; None: any number
folded: the chunks of a rank are placed in a V, so that the first rank also holds the last layers
"""

_BUILT_IN_FACTS: Mapping[str, Mapping[str, Any]] = {
    "swiglu": {"inputs": 2},
    "geglu": {"inputs": 2},
    "geglu_exact": {"inputs": 2},
    "quick_geglu": {"inputs": 2},
    "interleaved": {"chunks": None},
    "csv": {"chunks": None},
    "zb_v": {"chunks": 2, "folded": True},
    "dualpipe_v": {"chunks": 2, "folded": True},
}

IN_WEIGHT_NAMES: tuple[Kind, ...] = ("mixer", "feed_forward")
"""Kinds whose names are in the names of weights: `layers.3.NAME.*`."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TAKEN = ("norm1", "norm2", "post_norm1", "post_norm2", "dropout1", "dropout2")


class Registered(NamedTuple):
    """A part that a user registered."""

    value: Any
    facts: Mapping[str, Any]
    package: str = ""
    """Name and version of the package whose entry point it is; '' for one of an imported file."""


REGISTERED: dict[Kind, dict[str, Registered]] = {kind: {} for kind in KINDS}
"""Kind -> name -> what was registered under it, in this process."""


def register(kind: Kind, name: str, **facts: Any) -> Callable[[T], T]:
    """A decorator that makes `name` a value of the setting that selects things of this kind. Registering a name again
    replaces it, so that a notebook's cell can be run twice.

    Args:
        facts: `inputs` of an activation, `chunks` and `folded` of a schedule; see `FACTS`.

    Raises: UserError for a kind that does not exist, the name of a part of the package, or a part of the wrong shape.
    """
    _require_name(kind, name)
    known = FACTS.get(kind, {})
    for fact in facts:
        if fact not in known:
            one_of = f"use {', '.join(known)}" if known else "remove it"
            raise UserError(f"the {words(kind)} {name}: {fact} means nothing here: {one_of}")

    def keep(value: T) -> T:
        require_shape(kind, words(kind), name, value)
        REGISTERED[kind][name] = Registered(value, {**known, **_completed(facts)})
        return value

    return keep


def _require_name(kind: Kind, name: str) -> None:
    if kind not in KINDS:
        raise UserError(f"nothing of kind {kind} can be registered: use one of {', '.join(KINDS)}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be the name of a {words(kind)}: use letters, digits, - and _, a letter first"
        )
    if name in BUILT_IN[kind]:
        raise UserError(f"the {words(kind)} {name} comes with megascratch: choose another name")
    if kind in IN_WEIGHT_NAMES:
        others = [other for other in IN_WEIGHT_NAMES if other != kind]
        taken = {name for other in others for name in names(other)} | set(_TAKEN)
        if name in taken:
            raise UserError(
                f"the {words(kind)} {name}: another part of a layer has that name, which is in the names of weights: "
                "choose another name"
            )


def _completed(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """A V has two chunks per rank, also if only one of the two facts is given."""
    return {"chunks": 2, **facts} if facts.get("folded") else facts


def names(kind: Kind) -> tuple[str, ...]:
    """The names of the package, then registered ones. Entry points that no setting has asked for are not among them."""
    return (*BUILT_IN[kind], *REGISTERED[kind])


class NamesOfKind(Collection[str]):
    """The valid names of a kind. Whether an unknown one is valid is decided by the entry points of packages."""

    def __init__(self, kind: Kind):
        self.kind = kind

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in BUILT_IN[self.kind] or is_registered(self.kind, name)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.kind))

    def __len__(self) -> int:
        return len(names(self.kind))


def how_to_add(choices: Collection[str]) -> str:
    """How a list of choices can be longer, for the end of a message; '' for a list that is fixed."""
    if isinstance(choices, NamesOfKind):
        return ", or give --import with the file that registers it"
    return ""


def is_registered(kind: Kind, name: str) -> bool:
    """Whether a name is a user's own: registered, or the entry point of a package, which is loaded now.

    Raises: UserError for an entry point that cannot be loaded or has the wrong shape.
    """
    return name in REGISTERED[kind] or (name not in BUILT_IN[kind] and _load(kind, name))


def _load(kind: Kind, name: str) -> bool:
    """Loads the entry point of that name, if there is one."""
    for point in metadata.entry_points(group=f"megascratch.{kind}", name=name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        try:
            value = point.load()
            if name not in REGISTERED[kind]:  # its module may have registered it, with facts
                register(kind, name)(value)
        except Exception as error:
            raise UserError(
                f"the {words(kind)} {name} of the package {package} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        REGISTERED[kind][name] = REGISTERED[kind][name]._replace(package=package)
        return True
    return False


def look_up(kind: Kind, name: str, built_in: Mapping[str, T]) -> T:
    """What a name stands for: a row of the package's table, or what was registered.

    Raises: UserError for an unknown name.
    """
    if name in built_in:
        return built_in[name]
    if is_registered(kind, name):
        found: T = REGISTERED[kind][name].value
        return found
    raise UserError(
        f"unknown {words(kind)} {name}: use one of {', '.join(names(kind))}, or give --import with the file that "
        "registers it"
    )


def facts_of(kind: Kind, name: str | None) -> Mapping[str, Any]:
    """What the settings must know of a part (`FACTS`); the defaults for an unknown name."""
    found = REGISTERED[kind].get(name or "")
    if found is not None:
        return found.facts
    return {**FACTS[kind], **_BUILT_IN_FACTS.get(name or "", {})}


def packages() -> dict[str, str]:
    """'norm ScaleNorm' -> name and version of the package, for each entry point that was loaded."""
    found = {}
    for kind, parts in REGISTERED.items():
        for name, part in parts.items():
            if part.package:
                found[f"{words(kind)} {name}"] = part.package
    return found


def words(kind: str) -> str:
    """A kind for a message: 'learning-rate curve'."""
    return {"lr_curve": "learning-rate curve", "feed_forward": "feed-forward"}.get(
        kind, kind.replace("_", " ")
    )
