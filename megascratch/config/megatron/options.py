"""The table of all options of Megatron-LM's training arguments: what each one means here. See `flags.csv`.

A row has every spelling of an option, the number of its values, its class, and for the classes that need them: the
values at which it has no effect, the settings that it becomes, and words.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Class = Literal["same", "alias", "always", "none", "notice", "feature", "out", "refused"]
CLASSES: tuple[Class, ...] = get_args(Class)
"""What an option is here.

same     a setting of the same name
alias    another setting, or a value of one
always   what it asks for is always so
none     no effect: it chooses an implementation or a service that another mechanism replaces
notice   accepted, and the words say what differs
feature  needs something that is not there yet, which the words name
out      belongs to another program
refused  not accepted in Megatron-LM either, or it would mean something else here
"""

Values = Literal["0", "1", "3", "?", "*", "+"]
"""How many values an option accepts, as argparse writes it."""

FILE = Path(__file__).with_name("flags.csv")


_MOE = "mixture of experts"
VALUES_NOT_HERE: dict[str, dict[str, str]] = {
    "position-embedding-type": {
        "yarn": "scaling of rotary frequencies",
        "mrope": "multimodal models",
        "relative": "relative positions",
    },
    "optimizer": dict.fromkeys(
        ("sgd", "muon", "dist_muon", "adaptive_muon", "lion", "soap"),
        "other optimizers than Adam",
    ),
    "tokenizer-type": {
        "BertWordPieceLowerCase": "tokenizers of BERT",
        "BertWordPieceCase": "tokenizers of BERT",
        "MultimodalTokenizer": "multimodal models",
        "NullMultimodalTokenizer": "multimodal models",
        "SFTTokenizer": "supervised fine-tuning",
    },
    "recompute-modules": {
        "moe": _MOE,
        "moe_act": _MOE,
        "shared_experts": _MOE,
        "mla_up_proj": "multi-head latent attention",
        "gdn_norm_out": "linear or sparse attention",
        "gdp_in_proj": "linear or sparse attention",
        "gdp_qkv": "linear or sparse attention",
        "mhc": "other residual connections",
    },
}
"""Option of a setting -> values that only Megatron-LM has -> the feature that they need. One that a user registers here
is accepted."""


class Option(NamedTuple):
    """A row of the table."""

    names: tuple[str, ...]
    """Every spelling without dashes in front; the first is the name of the option."""
    values: Values
    kind: Class
    neutral: tuple[str, ...]
    """Values at which the option has no effect; for a switch that is always neutral, `off`."""
    becomes: dict[str, str | None]
    """Setting -> its value; None: the option's own value."""
    words: str

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def flag(self) -> str:
        return f"--{self.name}"


@cache
def options() -> tuple[Option, ...]:
    """All rows, in the order of the table."""
    with FILE.open(encoding="utf-8", newline="") as lines:
        return tuple(_option(row) for row in csv.DictReader(lines))


@cache
def by_spelling() -> dict[str, Option]:
    """Spelling without dashes in front, with dashes between words -> option."""
    found = {}
    for option in options():
        for name in option.names:
            found[name.replace("_", "-")] = option
    return found


def option_of(word: str) -> Option | None:
    """The option that a flag names, in any of its spellings; None: Megatron-LM has none of this name."""
    return by_spelling().get(word.lstrip("-").split("=", 1)[0].replace("_", "-"))


def _option(row: dict[str, str]) -> Option:
    becomes: dict[str, str | None] = {}
    for part in row["becomes"].split():
        setting, given, value = part.partition("=")
        becomes[setting] = value if given else None
    neutral = tuple(row["neutral"].split("|")) if row["neutral"] else ()
    return Option(
        tuple(row["flag"].split("|")),
        row["values"],  # type: ignore[arg-type]
        row["class"],  # type: ignore[arg-type]
        neutral,
        becomes,
        row["says"],
    )
