"""A config and the world size in; nothing, or one SettingError that lists every broken law, out.

A law is a plain function that returns a complaint or None; a `Broken` proposes values, of which only those are told
that pass all laws when a user follows them to the letter. Its parameters name the settings it reads (and
`world_size`), so the signature is the law's scope, and a law is left out when one of its settings already lies
outside its own range (`ranges.py`) or is unknown although the law needs it.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any, get_args

from megascratch.config.derive import derive
from megascratch.config.errors import SettingError
from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import batch, data, guard, layout, model, optim, recompute, save
from megascratch.config.notices import notices
from megascratch.config.ranges import out_of_range
from megascratch.config.remedies import WORLD, Broken, complaint
from megascratch.config.settings import Config

__all__ = ["derive", "notices", "validate"]

LAWS: list[Callable[..., str | Broken | None]] = [
    *model.LAWS,
    *layout.LAWS,
    *batch.LAWS,
    *data.LAWS,
    *optim.LAWS,
    *recompute.LAWS,
    *save.LAWS,
    *guard.LAWS,
]


def _scope(law: Callable[..., str | Broken | None]) -> dict[str, bool]:
    """Setting that a law reads -> whether it may be None."""
    parameters = inspect.signature(law).parameters.items()
    return {name: type(None) in get_args(parameter.annotation) for name, parameter in parameters}


SCOPES = {law: _scope(law) for law in LAWS}
SCOPE_OF = {law.__name__: scope for law, scope in SCOPES.items()}


def validate(config: Config, world_size: int) -> None:
    """Check every law on the derived config (a config with gaps is derived first).

    Raises one SettingError with all broken laws, one per line, each with the numbers and the nearest legal values.
    """
    complaints = broken_laws(config, world_size)
    if complaints:
        raise SettingError("\n".join(complaints))


def broken_laws(config: Config, world_size: int, unread: Collection[str] = ()) -> list[str]:
    """What `validate` raises, one text per broken law. Laws that read an `unread` setting are left out.

    `config` is best the one that was given, not derived: a user who follows a remedy derives anew.
    """
    wrong, broken = _judged(config, world_size, unread)
    before = wrong.keys() | broken.keys()
    texts = [*wrong.values()]
    for name, found in broken.items():

        def passes(setting: str, value: Any, name: str = name) -> bool:
            changed = config if setting == WORLD else with_fields(config, {setting: value})
            new_wrong, new_broken = _judged(changed, value if setting == WORLD else world_size, unread)
            read_by_broken = any(setting in SCOPE_OF[law] for law in new_broken)
            return not read_by_broken and new_wrong.keys() | new_broken.keys() <= before - {name}

        texts.append(complaint(found, passes) if isinstance(found, Broken) else found)
    return texts


def _judged(config: Config, world_size: int, unread: Collection[str]) -> tuple[dict[str, str], dict[str, str | Broken]]:
    """Setting -> what is wrong with its value alone; law -> its complaint."""
    values = flat(derive(config, world_size)) | {WORLD: world_size}
    wrong = out_of_range(values)
    broken = dict[str, str | Broken]()
    for law in LAWS:
        found = _apply(law, values, {*wrong, *unread})
        if found is not None:
            broken[law.__name__] = found
    return wrong, broken


def _apply(
    law: Callable[..., str | Broken | None], values: dict[str, Any], wrong: Collection[str]
) -> str | Broken | None:
    scope = SCOPES[law]
    for name, may_be_none in scope.items():
        if name in wrong or (values[name] is None and not may_be_none):
            return None
    return law(**{name: values[name] for name in scope})
