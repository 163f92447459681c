"""Declares a setting: one line holds its type, default, range, what a resume says of a change, and what it needs.

    rotary_base: float = setting(
        10000.0, REFUSED_FUNCTION, above(0), needs=equals("position_embedding_type", "rope")
    )

Its help text is the docstring below. `settings_of` collects the declarations into one table. The flag, the YAML key,
the checks, `--help`, the notices, the rules of a resume and the reference are read from that table, so a new setting is
named nowhere else but where it is used.
"""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from megascratch.config.ranges import Interval
from megascratch.config.registry import Kind, NamesOfKind
from megascratch.config.resume_effects import ResumeRule

Value = TypeVar("Value")


class Needs(NamedTuple):
    """What another setting must be for a setting to have an effect."""

    name: str
    """The other setting."""
    met_by: Callable[[Any], bool]
    otherwise: str
    """Follows 'has no effect': 'without position-embedding-type rope'."""


class Setting(NamedTuple):
    """A declared setting."""

    name: str
    section: str
    hint: Any
    """Its type."""
    default: Any
    on_resume: ResumeRule | None = None
    """None: an option of the command line, which is not a setting."""
    interval: Interval | None = None
    """Where a number must be; None: anywhere."""
    needs: Needs | None = None
    names: Kind | None = None
    """The value is the name of a thing of this kind, or a list of such names."""

    @property
    def kind(self) -> Any:
        """The type without None; of several ones the first."""
        return kinds_of(self.hint)[0]

    @property
    def may_be_text(self) -> bool:
        """Whether a list may be written as a text instead."""
        return get_origin(self.kind) is list and str in kinds_of(self.hint)

    @property
    def choices(self) -> Collection[str] | None:
        """All valid values, if they are names; None: a value is checked by its type."""
        if self.names is not None:
            return NamesOfKind(self.names)
        return get_args(self.kind) if get_origin(self.kind) is Literal else None


def setting(
    default: Value,
    on_resume: ResumeRule,
    interval: Interval | None = None,
    needs: Needs | None = None,
    names: Kind | None = None,
) -> Value:
    """The default of a dataclass field that is a setting; its help text is the docstring below the field.

    A record of settings can be the key of a cache: settings that may be lists have None as their default, and those are
    compared but not hashed.

    Give `needs` only to a setting whose default is a value of its own: one that is derived from others always differs
    from its default.
    """
    declared = {"on_resume": on_resume, "interval": interval, "needs": needs, "names": names}
    hashed = None if default is not None else False
    return dataclasses.field(default=default, hash=hashed, metadata=declared)


def equals(name: str, value: Any) -> Needs:
    """Another setting must have this value."""
    words = f"without {name.replace('_', '-')}"
    if value is not True:
        words = f"{words} {value}"
    return Needs(name, lambda found: bool(found == value), words)


def unset_or(name: str, value: Any) -> Needs:
    """Another setting must have this value, or none of its own."""
    return Needs(name, lambda found: found in (None, value), equals(name, value).otherwise)


def differs(name: str, value: Any, otherwise: str = "") -> Needs:
    """Another setting must have any value but this one; `otherwise` replaces 'with NAME VALUE' in the notice."""
    words = f"with {name.replace('_', '-')}"
    if value is not True:
        words = f"{words} {value}"
    return Needs(name, lambda found: bool(found != value), otherwise or words)


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a value may have, without None: (int,) for `int | None`."""
    if get_origin(hint) not in (Union, UnionType):
        return (hint,)
    return tuple(kind for kind in get_args(hint) if kind is not type(None))


def settings_of(sections: Mapping[str, type]) -> dict[str, Setting]:
    """Name -> setting, in the order of the sections, which are dataclasses.

    Raises: ValueError for a name in two sections, since a flag has no section.
    """
    settings: dict[str, Setting] = {}
    for section, record in sections.items():
        hints = get_type_hints(record)
        for field in dataclasses.fields(record):
            if field.name in settings:
                raise ValueError(f"{field.name} is in {settings[field.name].section} and {section}")
            settings[field.name] = Setting(
                field.name, section, hints[field.name], field.default, **field.metadata
            )
    return settings


def help_texts(record: type) -> dict[str, str]:
    """Setting -> the docstring below its field; the source of the class must be there."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(node, ast.ClassDef)
    texts = {}
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = inspect.cleandoc(str(following.value.value))
    return texts
