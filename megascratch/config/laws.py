"""A config and the world size in; nothing, or one SettingError that lists every broken law, out.

A law is a plain function that returns a complaint or None. Its parameters name the settings it reads (and
`world_size`), so the signature is the law's scope, and a law is left out when one of its settings already lies
outside its own range (`ranges.py`) or is unknown although the law needs it.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any, get_args

from megascratch.config import (
    batch_laws,
    data_laws,
    guard_laws,
    model_laws,
    optim_laws,
    parallel_laws,
    recompute_laws,
    save_laws,
)
from megascratch.config.derive import derive
from megascratch.config.errors import SettingError
from megascratch.config.fields import flat
from megascratch.config.notices import notices
from megascratch.config.ranges import out_of_range
from megascratch.config.settings import Config

__all__ = ["derive", "notices", "validate"]

LAWS: list[Callable[..., str | None]] = [
    *model_laws.LAWS,
    *parallel_laws.LAWS,
    *batch_laws.LAWS,
    *data_laws.LAWS,
    *optim_laws.LAWS,
    *recompute_laws.LAWS,
    *save_laws.LAWS,
    *guard_laws.LAWS,
]


def validate(config: Config, world_size: int) -> None:
    """Check every law on the derived config (a config with gaps is derived first).

    Raises one SettingError with all broken laws, one per line, each with the numbers and the nearest legal values.
    """
    complaints = broken_laws(config, world_size)
    if complaints:
        raise SettingError("\n".join(complaints))


def broken_laws(config: Config, world_size: int, unread: Collection[str] = ()) -> list[str]:
    """What `validate` raises, one text per broken law. Laws that read an `unread` setting are left out."""
    values = flat(derive(config, world_size)) | {"world_size": world_size}
    wrong = out_of_range(values)
    return [*wrong.values(), *(found for law in LAWS if (found := _judge(law, values, {*wrong, *unread})) is not None)]


def _judge(law: Callable[..., str | None], values: dict[str, Any], wrong: Collection[str]) -> str | None:
    scope = inspect.signature(law).parameters
    for name, parameter in scope.items():
        unknown = values[name] is None and type(None) not in get_args(parameter.annotation)
        if name in wrong or unknown:
            return None
    return law(**{name: values[name] for name in scope})
