"""`megascratch megatron-flags explain`: says what each flag of a command line or script of Megatron-LM means here."""

import argparse
import json
import textwrap

from megascratch.config.errors import UserError
from megascratch.config.megatron.reading import Explanation, explained, verdict
from megascratch.config.megatron.scripts import flags_of_script
from megascratch.config.printable import printable

WIDTH = 100
TITLES = {
    "same": "settings of the same name",
    "alias": "other settings",
    "rule": "defaults of Megatron-LM that differ",
    "always": "always so",
    "none": "no effect",
    "notice": "accepted, with a difference",
    "feature": "not there yet",
    "out": "flags of other programs",
    "refused": "refused",
    "unknown": "unknown to Megatron-LM and here",
}


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError if there is nothing to explain."""
    words = options.settings
    if not words:
        raise UserError("nothing to explain: give flags of Megatron-LM, or a script")
    script, arguments = "", words[1:]
    if not words[0].startswith("-"):
        script = words[0]
        words = flags_of_script(script, arguments)
    found = verdict(words)
    lines = explained(words)
    if options.json:
        print(json.dumps({"understood": found.whole, "flags": [line._asdict() for line in lines]}))
    else:
        print(_page(lines))
        print(_summary(lines, found.whole, found.refused))
        if script and not arguments and any("needs a value" in line for line in found.refused):
            print(
                f"give the arguments with which you start the script after its name: {script} ..."
            )
    return 0 if found.whole else 1


def _page(lines: list[Explanation]) -> str:
    """The flags by class, each with what it becomes."""
    parts = []
    for kind, title in TITLES.items():
        of_kind = [line for line in lines if line.kind == kind]
        if not of_kind:
            continue
        parts.append(f"{title}:")
        for line in of_kind:
            text = f"{line.flag}  ->  {line.meaning}" if line.meaning else line.flag
            parts.append(
                textwrap.fill(
                    printable(text),
                    WIDTH,
                    initial_indent="  ",
                    subsequent_indent="      ",
                    break_on_hyphens=False,
                )
            )
    return "\n".join(parts)


def _summary(lines: list[Explanation], whole: bool, refused: list[str]) -> str:
    given = [line for line in lines if line.kind != "rule"]
    if whole:
        return f"every flag is understood ({len(given)})"
    missing = sum(line.kind in ("feature", "out", "refused", "unknown") for line in given)
    text = f"{len(given) - missing} of {len(given)} flags are understood"
    return "\n".join([text, *map(printable, refused)])
