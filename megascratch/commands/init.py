"""`megascratch init`: writes the config of a known model as commented YAML, to be trained or edited.

megascratch init                                     lists the presets
megascratch init llama-10m                           writes llama-10m.yaml
megascratch init gpt2-124m --output configs/mine.yaml
"""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.config.presets import preset_names, preset_summary, preset_text
from megascratch.runtime.atomic_file import explain_write_errors, write_atomically


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    if options.preset is None:
        if options.output is not None:
            raise UserError(f"--output {options.output} needs a preset: megascratch init PRESET")
        print(preset_list())
        return 0
    text = preset_text(options.preset)
    output = options.output or f"{options.preset}.yaml"
    text = text.replace(f"--config {options.preset}.yaml", f"--config {shlex.quote(output)}")
    if output == "-":
        sys.stdout.write(text)
        return 0
    _write(Path(output), text)
    print(f"wrote {output}: {preset_summary(options.preset)}")
    print("Its first lines have the commands that prepare data for it, and train.")
    return 0


def preset_list() -> str:
    """A line for each preset: its name, what it is, its parameters."""
    summaries = {name: preset_summary(name) for name in preset_names()}
    width = max(len(name) for name in summaries)
    lines = []
    for name in sorted(summaries, key=lambda name: _parameters(summaries[name])):
        lines.append(f"  {name:<{width}}  {summaries[name]}")
    return "\n".join(["presets, for `megascratch init PRESET` and `--config PRESET`:", *lines])


def _parameters(summary: str) -> int:
    """The number of parameters that a summary names."""
    found = re.search(r"([\d,]+) parameters", summary)
    return int(found[1].replace(",", "")) if found else 0


def _write(file: Path, text: str) -> None:
    """Writes a file that does not exist yet. Raises: UserError if it does, or cannot be written."""
    if os.path.lexists(file):
        raise UserError(
            f"{file} exists and is not replaced: give another --output, or remove the file"
        )
    if not file.parent.is_dir():
        raise UserError(f"--output {file} cannot be written: there is no folder {file.parent}")
    with explain_write_errors(f"--output {file}"):
        write_atomically(file, text)
