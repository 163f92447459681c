"""Writes the text of `--help`: every setting by section, with its type, default, range and what it needs."""

import argparse
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from megascratch.config.declare import Setting, help_texts
from megascratch.config.fields import flag


def help_text(
    prog: str,
    sections: Mapping[str, type],
    settings: Mapping[str, Setting],
    values: Mapping[str, Any],
) -> str:
    """The help of a command whose flags are these settings; `values` are their defaults."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [-h] [OPTIONS]",
        description="Settings by section; every flag is also a key of the YAML file.",
        add_help=False,
    )
    for section, record in sections.items():
        group = parser.add_argument_group(section, record.__doc__)
        texts = help_texts(record)
        for name, text in texts.items():
            setting = settings[name]
            about = " ".join([text, *_facts(setting, values[name])]).replace("%", "%%")
            if setting.kind is bool:
                group.add_argument(flag(name), flag(f"no_{name}"), action="store_true", help=about)
                continue
            words = "+" if get_origin(setting.kind) is list else None
            group.add_argument(flag(name), nargs=words, metavar=_metavar(setting), help=about)
    return parser.format_help()


def _facts(setting: Setting, value: Any) -> list[str]:
    """What the declaration says in addition to the help text, in brackets."""
    facts = []
    if value is not None:
        facts.append(f"default: {value}")
    if setting.interval is not None:
        facts.append(setting.interval.words())
    if setting.needs is not None:
        facts.append(f"no effect {setting.needs.otherwise}")
    return [f"({'; '.join(facts)})"] if facts else []


def _metavar(setting: Setting) -> str:
    """INT, FLOAT, STR, or the choices."""
    if setting.choices is not None:
        return f"{{{','.join(setting.choices)}}}"
    kind = setting.kind
    item = get_args(kind)[0] if get_origin(kind) is list else kind
    return str(item.__name__).upper()
