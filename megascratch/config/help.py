"""What the help says of each setting: its flag, its type or choices, its meaning, default, range and what it needs."""

from typing import Any, NamedTuple, get_args, get_origin

from megascratch.config.declare import Setting
from megascratch.config.fields import ALIASES, flag

COMMON = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "position_embedding_type",
    "normalization",
    "swiglu",
    "hidden_dropout",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "use_distributed_optimizer",
    "data_path",
    "split",
    "seq_length",
    "tokenizer_model",
    "lr",
    "min_lr",
    "lr_decay_style",
    "lr_warmup_iters",
    "bf16",
    "micro_batch_size",
    "global_batch_size",
    "train_iters",
    "eval_interval",
    "output_dir",
    "save_interval",
    "load",
    "auto_resume",
)
"""The settings that are changed first: those of the short help and of the first table of docs/reference/settings.md."""

LONGEST_CHOICES = 24
"""Characters of choices that are shown in place of a value; longer ones follow the meaning."""


FILES = ("config", "imports")
"""Settings whose value is a file."""

SPELLED = {name: spelling for spelling, name in ALIASES.items()}


class FlagHelp(NamedTuple):
    """The flags of a setting and what the help says of them."""

    flags: tuple[str, ...]
    metavar: str | None
    """The value in the help; None: the flag has no value."""
    is_list: bool
    text: str


def flag_help(setting: Setting, meaning: str, short: bool = False) -> FlagHelp:
    """The help of a setting.

    Args:
        meaning: the text of its declaration.
        short: without ranges, needs and the negative flag.
    """
    is_list = get_origin(setting.kind) is list
    spelled = SPELLED.get(setting.name, setting.name)
    flags: tuple[str, ...] = (flag(spelled),)
    metavar: str | None = "|".join(setting.choices or ())
    facts = []
    if setting.kind is bool:
        metavar = None
        if not short:
            flags = (flag(spelled), flag(f"no_{spelled}"))
    elif setting.name in FILES:
        metavar = "FILE"
    elif not metavar:
        item = get_args(setting.kind)[0] if is_list else setting.kind
        metavar = str(item.__name__).upper()
    elif len(metavar) > LONGEST_CHOICES:
        facts.append(f"one of {', '.join(setting.choices or ())}")
        metavar = "NAME"
    default = setting.default
    if default is not None and default is not False and "default: " not in meaning:
        facts.append(f"default: {_words(default)}")
    if setting.interval is not None and not short:
        facts.append(setting.interval.words())
    if setting.needs is not None and not short:
        facts.append(f"no effect {setting.needs.otherwise}")
    text = f"{meaning} ({'; '.join(facts)})" if facts else meaning
    return FlagHelp(flags, metavar, is_list, text)


def _words(default: Any) -> str:
    """A default as a user would write it on the command line."""
    if default is True:
        return "on"
    if isinstance(default, list | tuple):
        return " ".join(map(str, default))
    return str(default)
