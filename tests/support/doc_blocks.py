"""Fenced blocks of a Markdown page: found, judged and run as a reader would who copies them one by one.

    bash       run
    console    the lines behind `$ ` are run; with `<!-- exact output -->` above, the others must be printed
    python     run; with a first line `# NAME.py` written to that file instead
    yaml       with a first line `# NAME.yaml` written to that file, else each key must be a setting of the right type
    text ...   shown only

Comments directly above a block: `<!-- not run: reason -->`, `<!-- exit code: 2 -->`, `<!-- exact output -->`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from megascratch.config.errors import SettingError
from megascratch.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
RUN = ("bash", "console", "python", "yaml")
SHOWN = ("text", "json", "csv", "diff", "{toctree}", "{include}", "{image}")
CLONE = ("benchmarks", "docs", "examples", "tools")
"""What commands of a page find in the folder that they are run in, as in a clone."""


class Block(NamedTuple):
    """One fenced block."""

    page: Path
    line: int
    language: str
    comments: list[str]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason_not_run(self) -> str | None:
        return self._comment("not run")

    @property
    def exit_code(self) -> int:
        return int(self._comment("exit code") or 0)

    def _comment(self, key: str) -> str | None:
        for comment in self.comments:
            if comment.startswith(f"{key}:"):
                return comment.removeprefix(f"{key}:").strip()
        return None


def pages() -> list[Path]:
    """README, SECURITY and every page of the documentation that a person wrote."""
    written = [page for page in (ROOT / "docs").rglob("*.md") if "generated" not in page.parts]
    return [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(written)]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = []
    comments: list[str] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        opening = re.match(r"(`{3,})(\S*)", line)
        if opening:
            end = lines.index(opening[1], number + 1)
            found.append(
                Block(
                    page,
                    number + 1,
                    opening[2],
                    comments,
                    "\n".join(lines[number + 1 : end]) + "\n",
                )
            )
            comments = []
            number = end
        elif line.startswith("<!--"):
            comments = [*comments, line.removeprefix("<!--").removesuffix("-->").strip()]
        else:
            comments = []
        number += 1
    return found


def prepare(folder: Path) -> None:
    """Makes a folder look like a clone, whose own files stay untouched."""
    for name in CLONE:
        (folder / name).symlink_to(ROOT / name)


def run(block: Block, folder: Path, timeout: float) -> str:
    """What is wrong with a block in `folder`, '' for nothing."""
    if block.language == "yaml":
        return _read_yaml(block, folder)
    if block.language == "python":
        name = re.match(r"# (\S+\.py)$", block.text.splitlines()[0])
        if name:
            (folder / name[1]).write_text(block.text, encoding="utf-8")
            return ""
        return _failure(block, [sys.executable, "-"], block.text, folder, timeout)
    script = block.text if block.language == "bash" else commands_of(block.text)
    return _failure(block, ["bash", "-euo", "pipefail", "-s"], script, folder, timeout)


def commands_of(console: str) -> str:
    """The lines behind `$ `, each with those that it continues on."""
    script = []
    continues = False
    for line in console.splitlines():
        if line.startswith("$ ") or continues:
            script.append(line.removeprefix("$ "))
            continues = line.endswith("\\")
    return "\n".join(script) + "\n"


def outputs_of(console: str) -> list[str]:
    """The lines that the commands print."""
    commands = commands_of(console).splitlines()
    return [
        line
        for line in console.splitlines()
        if line.removeprefix("$ ") not in commands and line.strip()
    ]


def _read_yaml(block: Block, folder: Path) -> str:
    name = re.match(r"# (\S+\.yaml)$", block.text.splitlines()[0])
    file = folder / (name[1] if name else "fragment.yaml")
    file.write_text(block.text, encoding="utf-8")
    try:
        load_config(["--config", str(file)])
    except SettingError as error:
        return f"{block.place}: {error}"
    return ""


def _failure(block: Block, command: list[str], script: str, folder: Path, timeout: float) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }
    environment.pop("MEGASCRATCH_FAULT", None)
    # input is a pipe, so that no command can wait for a person
    done = subprocess.run(
        command,
        input=script,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=timeout,
    )
    printed = done.stdout + done.stderr
    if done.returncode != block.exit_code:
        return f"{block.place}: exit code {done.returncode}, not {block.exit_code}\n{script}\n{printed[-3000:]}"
    if block.language == "console" and "exact output" in block.comments:
        there = {line.strip() for line in printed.splitlines()}
        missing = [line for line in outputs_of(block.text) if line.strip() not in there]
        if missing:
            return f"{block.place}: not printed: {missing}\n{printed[-3000:]}"
    return ""
