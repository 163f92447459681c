"""The names that a setting may have as its value, and what users register under names of their own. Needs no torch.

    # my_layers.py, which `--import my_layers.py` runs in every process of a run
    import megascratch as ms

    @ms.register("norm", "ScaleNorm")
    class ScaleNorm(nn.Module): ...

The parts that come with the package are in literal tables, in the file of the thing (`NORMS` in `layers/norm.py`).
Their names are listed here, so that a setting can be checked without torch. `look_up` searches such a table, then what
was registered.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

from megascratch.config.errors import UserError

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
]

KINDS: tuple[Kind, ...] = get_args(Kind)

BUILT_IN: Mapping[Kind, tuple[str, ...]] = {
    "norm": ("LayerNorm", "RMSNorm"),
    "activation": ("gelu", "openai_gelu", "squared_relu", "swiglu"),
    "mixer": ("attention",),
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
}
"""Kind -> the names that come with the package."""

REGISTERED: dict[Kind, dict[str, Any]] = {kind: {} for kind in KINDS}
"""Kind -> name -> what was registered under it, in this process."""


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """A decorator that makes `name` a value of the setting that selects things of this kind. Registering a name again
    replaces it, so that a notebook's cell can be run twice.

    Raises: UserError for a kind that does not exist, or the name of a part of the package.
    """
    if kind not in KINDS:
        raise UserError(f"nothing of kind {kind} can be registered: use one of {', '.join(KINDS)}")
    if name in BUILT_IN[kind]:
        raise UserError(f"the {kind} {name} comes with megascratch: choose another name")

    def keep(value: T) -> T:
        REGISTERED[kind][name] = value
        return value

    return keep


def names(kind: Kind) -> tuple[str, ...]:
    """All names of a kind: those of the package, then registered ones."""
    return (*BUILT_IN[kind], *REGISTERED[kind])


def look_up(kind: Kind, name: str, built_in: Mapping[str, T]) -> T:
    """What a name stands for: a row of the package's table, or what was registered.

    Raises: UserError for an unknown name.
    """
    if name in built_in:
        return built_in[name]
    if name in REGISTERED[kind]:
        found: T = REGISTERED[kind][name]
        return found
    raise UserError(
        f"unknown {kind} {name}: use one of {', '.join(names(kind))}, or give --import with the file that registers it"
    )
