"""The parser of every command: help in 80 columns with examples at its end, and errors in one form.

An error is raised as a UserError with the flag, its value and what it must be; `megascratch.commands` prints it.
"""

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from megascratch.config.errors import UserError
from megascratch.config.hints import most_similar

WIDTH = 80
FLAG_COLUMN = 26
"""Where the texts of the flags begin."""
COMMANDS = "commands"


def any_setting() -> str:
    """The help of a command that accepts the settings of a run, in addition to its own flags."""
    return """\
settings:
  --config FILE           YAML file with settings; can be repeated, later files
                          override earlier ones, and flags override them all
  --import FILE           Python file or module that registers parts to use
  --SETTING VALUE         any setting: megascratch pretrain --help-all"""


TYPES: dict[Any, str] = {int: "a whole number", float: "a number"}


class Parser(argparse.ArgumentParser):
    """The flags of a command, or of one of its sub-commands.

    Args:
        prog: `megascratch VERB`.
        about: what the command does.
        examples: command lines, each on one line or continued with a backslash.
        note: what else a user must know; printed below the flags.
        settings_help: words that are not flags of the command are settings, returned as `options.settings`; the help
            prints what this function returns.
        check: raises UserError for values that do not fit together, and files that do not exist.
        options: what argparse hands to the parser of a sub-command.
    """

    def __init__(
        self,
        prog: str,
        about: str,
        examples: Sequence[str] = (),
        note: str = "",
        settings_help: Callable[[], str] | None = None,
        check: Callable[[argparse.Namespace], None] | None = None,
        **options: Any,
    ):
        super().__init__(
            prog=prog,
            description=about,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
            **options,
        )
        self._settings_help = settings_help
        self._check = check
        self._examples = examples
        self._note = note
        self._words: list[str] = []
        self.set_defaults(parser=self)
        self._general = self.add_argument_group("general")
        add = self._general.add_argument
        add("-h", "--help", action="help", help="print this help and exit")
        add("-q", "--quiet", action="store_true", help="print only errors and results")
        add("-v", "--verbose", action="store_true", help="also print details and timings")

    def add_commands(self, summaries: dict[str, str]) -> Callable[..., "Parser"]:
        """Adds sub-commands, whose name becomes `options.name`. Returns a function that makes the parser of each:
        (name, examples=(), note="", settings_help=None, check=None)."""
        commands = self.add_subparsers(
            title=COMMANDS, dest="name", metavar="COMMAND", parser_class=Parser
        )

        def add(name: str, **kwargs: Any) -> "Parser":
            summary = summaries[name]
            made: Parser = commands.add_parser(name, help=summary, about=summary, **kwargs)
            return made

        return add

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options of a command line, and the command line itself as `options.argv`. Prints the help and raises
        SystemExit(0) if it is asked for.

        Raises: UserError for a flag that is unknown, missing, or has a wrong value.
        """
        options, rest = self.parse_known_args(argv)
        options.argv = list(argv)
        if getattr(options, "name", "") is None:
            raise UserError(f"no command given: use one of {', '.join(self.commands())}")
        used: Parser = options.parser
        if used.takes_settings:
            options.settings = rest
        elif rest:
            used.refuse(rest)
        if used._check is not None:
            used._check(options)
        return options

    def commands(self) -> dict[str, "Parser"]:
        """The parsers of the sub-commands by name; empty if there are none."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def flags(self) -> dict[str, argparse.Action]:
        """Every flag with what it means."""
        found = {}
        for action in self._actions:
            for flag in action.option_strings:
                found[flag] = action
        return found

    @property
    def takes_settings(self) -> bool:
        """Whether words that are not flags of the command are settings of a run."""
        return self._settings_help is not None

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Raises: UserError that names the unknown flags, or the words that belong to no flag."""
        problems = []
        for word in words:
            flag = word.split("=", 1)[0]
            if flag.startswith("-") and len(flag) > 1:
                near = most_similar(flag, self.flags())
                problems.append(
                    f"unknown flag {flag}" + (f" - did you mean {near}?" if near else "")
                )
        if not problems:
            problems.append(f"{' '.join(words)}: put the flag in front of each value")
        raise UserError("\n".join(problems))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; `error` looks at the words."""
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises: UserError with argparse's message in our words. A flag that is missing because it is misspelt is
        named as it was written."""
        flags = [word for word in self._words if word.startswith("--")]
        unknown = [flag for flag in flags if flag.split("=", 1)[0] not in self.flags()]
        if "are required" in message and unknown and not self.takes_settings:
            self.refuse(unknown)
        raise UserError(_in_our_words(message, self))

    def format_help(self) -> str:
        """Usage, flags by group, notes and examples."""
        about = _wrapped(str(self.description))
        parts = [self.format_usage().rstrip(), about]
        own = [group for group in self._action_groups if group is not self._general]
        general = self.format_groups([self._general])
        for text in (
            self._commands_text(),
            self.format_groups(own),
            self._settings_text(),
            general,
        ):
            if text:
                parts.append(text)
        if self._note:
            parts.append(_wrapped(self._note))
        if self._examples:
            lines = ["example:" if len(self._examples) == 1 else "examples:"]
            for example in self._examples:
                lines.append(textwrap.indent(example, "  "))
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def format_groups(self, groups: Sequence[Any] | None = None) -> str:
        """The flags of some groups, by default of all but the general one, with their texts."""
        formatter = _Formatter(self.prog)
        for group in self._action_groups if groups is None else groups:
            if group is self._general and groups is None:
                continue
            if self.commands() and group.title == COMMANDS:
                continue
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return formatter.format_help().rstrip()

    def _commands_text(self) -> str:
        """The sub-commands with what they do."""
        lines = []
        for name, command in self.commands().items():
            indent = f"  {name:<15}"
            lines.append(_wrapped(str(command.description), indent, " " * len(indent)))
        return "\n".join([f"{COMMANDS}:", *lines]) if lines else ""

    def _settings_text(self) -> str:
        return "" if self._settings_help is None else self._settings_help()

    def format_usage(self) -> str:
        """What must be given, and that there are flags."""
        formatter = _Formatter(self.prog)
        words = [f"usage: {self.prog}"]
        for action in self._actions:
            if action.option_strings and action.required:
                words.append(formatter.invocation(action))
        for either in self._mutually_exclusive_groups:
            if either.required:
                flags = [formatter.invocation(action) for action in either._group_actions]
                words.append(f"({' | '.join(flags)})")
        for action in self._actions:
            if not action.option_strings:
                words.append(formatter.positional(action))
        return _wrapped(" ".join([*words, "[--flags]"]), "", " " * 8) + "\n"

    def _get_value(self, action: argparse.Action, word: str) -> Any:
        try:
            return super()._get_value(action, word)
        except argparse.ArgumentError as error:
            kind = TYPES.get(action.type)
            if kind is None:
                raise
            raise argparse.ArgumentError(action, f"({word}) must be {kind}") from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = list(map(str, action.choices))
        near = most_similar(str(value), names)
        hint = f" - did you mean {near}?" if near else ""
        if isinstance(action, argparse._SubParsersAction):
            raise UserError(f"unknown command {value}{hint}: use one of {', '.join(names)}")
        raise argparse.ArgumentError(action, f"({value}) must be one of {', '.join(names)}{hint}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Aligns flags as argparse does, in WIDTH columns whatever the terminal."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=FLAG_COLUMN, width=WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        """Choices as `cpu|cuda`."""
        named = action.choices is not None and action.metavar is None
        word = "|".join(map(str, action.choices or ())) if named else default_metavar
        metavar = action.metavar or word

        def repeated(times: int) -> tuple[str, ...]:
            return metavar if isinstance(metavar, tuple) else (metavar,) * times

        return repeated

    def invocation(self, action: argparse.Action) -> str:
        """`--load DIR`"""
        flag = action.option_strings[-1]
        return f"{flag} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def positional(self, action: argparse.Action) -> str:
        """`FILE`, `[IDS ...]`"""
        if isinstance(action, argparse._SubParsersAction):
            return "COMMAND"
        return self._format_args(action, self._get_default_metavar_for_positional(action))


def _wrapped(text: str, first: str = "", indent: str = "") -> str:
    """The text in lines of WIDTH columns; flags are not broken at their hyphens."""
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )


def _in_our_words(message: str, parser: Parser) -> str:
    """argparse's message, which differs between versions of Python, as a sentence that names the flag and a remedy."""
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing:
        return "\n".join(_is_missing(name, parser) for name in missing[1].split(", "))
    either = re.match(r"one of the arguments (.*) is required", message)
    if either:
        return f"one of {', '.join(either[1].split())} is missing"
    found = re.match(r"argument ([^ ]*): (.*)", message, flags=re.DOTALL)
    if not found:
        return message
    name = found[1].split("/")[-1]
    problem = found[2]
    other = re.match(r"not allowed with argument (\S+)", problem)
    if other:
        return f"{name} and {other[1]} exclude each other: remove one of them"
    value = re.match(r"ignored explicit argument '?(.*?)'?$", problem)
    if value:
        return f"{name} does not accept a value (given: {value[1]})"
    if re.match(r"expected (one|at least one) argument", problem):
        return f"{name} needs a value: {_about(parser.flags().get(name))}"
    number = re.match(r"expected (\d+) arguments", problem)
    if number:
        return f"{name} needs {number[1]} values"
    return f"{name} {problem}"


def _is_missing(name: str, parser: Parser) -> str:
    """`--load DIR is missing: a folder of checkpoints ...`"""
    formatter = _Formatter(parser.prog)
    for action in parser._actions:
        if name in action.option_strings:
            return f"{formatter.invocation(action)} is missing: {_about(action)}"
        if not action.option_strings and name in (action.metavar, action.dest):
            return f"{formatter.positional(action)} is missing: {_about(action)}"
    return f"{name} is missing"


def _about(action: argparse.Action | None) -> str:
    """The help text of a flag, without its default."""
    return str(action.help).split(" (default")[0] if action else "see --help"
