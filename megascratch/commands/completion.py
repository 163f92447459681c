"""`megascratch completion`: prints the script with which a shell completes commands, flags, values and files.

The script asks `megascratch completion --words WORD ...` at each key press, so it is never out of date. The first line
of the answer is `files` if a file may follow, else `words`; each further line is a candidate.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import NamedTuple, get_args, get_origin

from megascratch.commands.parsers.base import Parser
from megascratch.config.fields import SETTINGS
from megascratch.config.flags import OPTIONS
from megascratch.config.help import flag_help
from megascratch.config.presets import preset_names
from megascratch.config.registry import names

FILES = ("FILE", "DIR", "PREFIX", "STR")
"""Placeholders of values that are completed as files."""

SCRIPTS = {
    "bash": """\
_megascratch() {
    local IFS=$'\\n' answer
    answer=($("${COMP_WORDS[0]}" completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    COMPREPLY=("${answer[@]:1}")
    if [[ ${answer[0]} == files ]]; then
        COMPREPLY+=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
        compopt -o filenames 2>/dev/null
    fi
}
complete -F _megascratch megascratch
""",
    "zsh": """\
#compdef megascratch
_megascratch() {
    local -a answer
    answer=("${(@f)$(megascratch completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    (( $#answer > 1 )) && compadd -- "${(@)answer[2,-1]}"
    [[ $answer[1] == files ]] && _files
}
compdef _megascratch megascratch
""",
    "fish": """\
function __megascratch_candidates
    set -l typed (commandline -opc) (commandline -ct)
    set -l answer (megascratch completion --words $typed[2..-1] 2>/dev/null)
    printf '%s\\n' $answer[2..-1]
    if test "$answer[1]" = files
        __fish_complete_path (commandline -ct)
    end
end
complete -c megascratch -f -a '(__megascratch_candidates)'
""",
}


class Candidates(NamedTuple):
    """What may stand at a place of the command line."""

    words: Sequence[str] = ()
    files: bool = False


class _Value(NamedTuple):
    """The values of a flag."""

    candidates: Candidates
    several: bool
    """The flag may be followed by more than one value."""


def main(options: argparse.Namespace) -> int:
    """Prints the script of a shell, or, for the script, what may stand in place of the last word."""
    if options.words is None:
        print(SCRIPTS[options.shell], end="")
        return 0
    *before, current = options.words or [""]
    found = candidates(before, current)
    print("files" if found.files else "words")
    for word in found.words:
        if word.startswith(current):
            print(word)
    return 0


def candidates(before: Sequence[str], current: str) -> Candidates:
    """What may follow the words `before`; `current` is the beginning of the word, which may be empty."""
    from megascratch.commands import VERBS  # that module imports this one as a command

    if not before or before[0] == "help":
        return Candidates([*VERBS, "help", "--help", "--version"])
    if before[0] not in VERBS:
        return Candidates()
    name = before[0].replace("-", "_")
    parser: Parser = importlib.import_module(f"megascratch.commands.parsers.{name}").parser()
    rest = before[1:]
    commands = parser.commands()
    if commands:
        if not rest:
            return Candidates([*commands, *parser.flags()])
        if rest[0] not in commands:
            return Candidates()
        parser = commands[rest[0]]
        rest = rest[1:]
    flags = _flags(parser)
    value = _value_of_flag(rest, flags)
    if value is not None and not current.startswith("-"):
        return value
    if current.startswith("-"):
        return Candidates(list(flags))
    places = [action for action in parser._actions if not action.option_strings]
    if places:
        return _of_action(places[0]).candidates
    return Candidates(list(flags))


def _value_of_flag(rest: Sequence[str], flags: dict[str, _Value | None]) -> Candidates | None:
    """The values of the flag before the current word; None: no flag has that word as its value."""
    for words_since, word in enumerate(reversed(rest)):
        if word.startswith("-"):
            value = flags.get(word)
            if value is not None and (value.several or not words_since):
                return value.candidates
            return None
    return None


def _flags(parser: Parser) -> dict[str, _Value | None]:
    """Every flag with its values; None: it has no value."""
    found: dict[str, _Value | None] = {}
    for flag, action in parser.flags().items():
        if action.help != argparse.SUPPRESS:
            found[flag] = None if action.nargs == 0 else _of_action(action)
    if parser.takes_settings:
        for setting in (SETTINGS | OPTIONS).values():
            one = flag_help(setting, "")
            value = None
            if one.metavar is not None:
                choices = list(setting.choices or ())
                if setting.name == "config":
                    choices = list(preset_names())
                item = (
                    get_args(setting.kind)[0] if get_origin(setting.kind) is list else setting.kind
                )
                files = not setting.choices and item is str
                value = _Value(Candidates(choices, files), one.is_list)
            found |= dict.fromkeys(one.flags, value)
    return found


def _of_action(action: argparse.Action) -> _Value:
    choices = [str(choice) for choice in action.choices or () if choice != ""]
    if action.metavar == "PRESET":
        choices += preset_names()
    if action.metavar == "KIND":
        choices += names("tokenizer")
    metavar = action.metavar or action.dest.upper()
    files = not choices and metavar in FILES
    return _Value(Candidates(choices, files), action.nargs in ("+", "*"))
