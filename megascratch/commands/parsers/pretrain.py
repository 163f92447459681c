"""The flags of `megascratch pretrain`: those of its launcher. All others are settings, which `config.load` reads."""

import argparse
from collections.abc import Iterable
from typing import Any

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import at_least
from megascratch.config.declare import help_texts
from megascratch.config.fields import SECTIONS, SETTINGS
from megascratch.config.flags import OPTIONS, Options
from megascratch.config.help import COMMON, flag_help

Group = argparse._ArgumentGroup
EXAMPLES = (
    "megascratch pretrain --config my.yaml",
    "megascratch pretrain --config my.yaml --nproc-per-node 8 --max-restarts 2 \\\n"
    "    --tensor-model-parallel-size 2 --lr 3e-4 --auto-resume",
    "megascratch pretrain --config my.yaml --print-config",
)
ABOUT = (
    "Trains a model, as one rank or as the launcher of all ranks. Every setting is a flag and a key of the YAML file; "
    "flags override files."
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser("megascratch pretrain", ABOUT, EXAMPLES, settings_help=common_settings)
    add_launcher(made).add_argument(
        "--scale-down",
        action="store_true",
        help="train 3 steps in miniature: the same kind of model and layout, on the ranks that are here",
    )
    add = made.add_argument_group("more help").add_argument
    add(
        "--help-all",
        nargs="?",
        const="",
        choices=("", *SECTIONS),
        metavar="SECTION",
        action=_HelpAll,
        help=f"print every setting, or those of a section ({', '.join(SECTIONS)}), and exit",
    )
    add(
        "--print-resume-rules",
        action="store_true",
        help="print which settings may change when a run resumes from a checkpoint, and exit",
    )
    return made


def add_launcher(made: Parser) -> Group:
    """Adds the flags that start ranks. Returns the group of those about this machine."""
    here = made.add_argument_group("ranks on this machine")
    add = here.add_argument
    add(
        "--nproc-per-node",
        type=at_least(1),
        metavar="N",
        help="check settings and files, then start N ranks on this machine and monitor them",
    )
    add(
        "--max-restarts",
        type=at_least(0),
        metavar="N",
        help="if a rank dies or hangs, restart all ranks from the newest checkpoint, up to N times",
    )
    add = made.add_argument_group("several machines (the same command on each)").add_argument
    add("--nnodes", metavar="N|MIN:MAX", help="number of machines; uses torchrun")
    add(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        help="host and port of the rendezvous, on one of the machines",
    )
    add("--rdzv-id", metavar="NAME", help="name of the run, the same on all machines")
    add(
        "--rdzv-conf",
        metavar="K=V,...",
        help="rendezvous settings of torchrun, such as is_host=1, if names and addresses do not match",
    )
    add(
        "--local-addr",
        metavar="ADDRESS",
        help="the address at which the other machines reach this one",
    )
    return here


def common_settings() -> str:
    """The help of the options and of the settings that are changed first, by section."""
    return _settings_help((*COMMON, "imports"), short=True)


def all_settings(section: str = "") -> str:
    """The help of every setting, or of every one of a section."""
    return _settings_help([name for name, one in SETTINGS.items() if section in ("", one.section)])


class _HelpAll(argparse.Action):
    """Prints every setting, or those of a section, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(all_settings(values))
        parser.exit()


def _settings_help(names: Iterable[str], short: bool = False) -> str:
    shown = Parser("", "")
    sections = {"options": Options, **SECTIONS}
    chosen = {*names, *OPTIONS}
    settings = SETTINGS | OPTIONS
    for section, record in sections.items():
        meanings = help_texts(record)
        texts = {name: meaning for name, meaning in meanings.items() if name in chosen}
        if not texts:
            continue
        more = len(meanings) - len(texts)
        title = section if not more else f"{section} ({more} more: --help-all {section})"
        group = shown.add_argument_group(title, None if short else record.__doc__)
        for name, meaning in texts.items():
            setting = settings[name]
            one = flag_help(setting, meaning, short)
            text = one.text.replace("%", "%%")
            if one.metavar is None:
                group.add_argument(*one.flags, action="store_true", help=text)
            else:
                group.add_argument(
                    *one.flags, metavar=one.metavar, nargs="+" if one.is_list else None, help=text
                )
    return shown.format_groups()
